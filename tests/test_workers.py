import threading

import pytest
import torch

from hf_moe_lmc import cli
from hf_moe_lmc.workers import each, one_thread_per_operation, threads_for
from tests import families
from tests.alignment.test_processes import content


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def thread_and_threads(_):
    return threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()


def test_workers_take_the_place_of_threads(three_threads):
    met = threading.Barrier(3)  # passed only where three wait at once

    def meet(number):
        met.wait(60)
        return number, *thread_and_threads(number)

    with one_thread_per_operation(), torch.inference_mode():
        assert torch.get_num_threads() == 1
        numbers, idents, threads, _ = zip(*each(meet, range(3)), strict=True)
        assert numbers == (0, 1, 2)
        assert threads == (1, 1, 1)
        assert len(set(idents)) == 3
        # A worker hands nothing on: its own pool would wait for itself.
        assert all(
            len({ident for ident, _, _ in inner}) == 1
            for inner in each(lambda _: each(thread_and_threads, "ab"), "abc")
        )
    assert torch.get_num_threads() == 3
    assert {ident for ident, *_ in each(thread_and_threads, "abc")} == {threading.get_ident()}


def test_workers_know_whether_gradients_are_wanted(three_threads):
    with torch.no_grad(), one_thread_per_operation():
        assert not any(enabled for *_, enabled in each(thread_and_threads, "abc"))


def test_the_first_error_in_order_is_raised(three_threads):
    second = threading.Event()

    def fail(name):
        if name == "first":
            second.wait(60)
        second.set()
        raise ValueError(name)

    with one_thread_per_operation(), pytest.raises(ValueError, match="first"):
        each(fail, ["first", "second"])
    assert torch.get_num_threads() == 3


def test_large_models_keep_the_threads_of_torch(three_threads):
    with threads_for(10**6):
        assert torch.get_num_threads() == 1
    with threads_for(10**9):
        assert torch.get_num_threads() == 3


def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path, monkeypatch, capsys):
    """Of alignments, rewritten checkpoints and merges with a repair; --threads says the number."""
    for seed, name in enumerate("ab"):
        families.build("deepseek_v3", seed=seed).save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    seen = set()
    monkeypatch.setattr("hf_moe_lmc.matching.joint.match_units", watched(seen))
    for threads in "13":
        for command in (
            ["align", "a", "b", "-o", f"{threads}/alignment"],
            ["apply", f"{threads}/alignment", "b", "-o", f"{threads}/applied"],
            ["merge", "a", "b", "--force", "--repair", "norms", "-o", f"{threads}/merged"],
        ):
            (tmp_path / threads).mkdir(exist_ok=True)
            assert cli.main([*command, "--threads", threads, "--quiet"]) == 0, capsys.readouterr().err
    assert content(tmp_path / "1") == content(tmp_path / "3")
    assert len(seen) > 2  # this thread, and workers


def watched(seen):
    from hf_moe_lmc.matching.unit_matching import match_units

    def match(a, b):
        seen.add(threading.get_ident())
        return match_units(a, b)

    return match
