import json
import os
import re
import shlex
import shutil
import time
from dataclasses import replace
from math import factorial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForImageClassification

from hf_moe_lmc import Alignment, align, cli, merge, scramble
from hf_moe_lmc.demo import run as demo_run
from hf_moe_lmc.demo import run_demo
from hf_moe_lmc.demo.report import Report
from hf_moe_lmc.errors import BadInputError, OutputError
from hf_moe_lmc.merging import REPAIRS
from tests import forked
from tests.demo.tiny import SEEDS, TINY

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("demo")  # one run of the demo serves all tests of this file
METHODS = ["naive", "rescale_control", "units", "gate", "gram", "joint", "best_of_all_orders"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    run_demo(out, SEEDS, TINY)
    return out


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def without_clock(folder: Path) -> dict:
    return {key: value for key, value in report(folder).items() if key != "wall_seconds"}


def load(folder: Path):
    return AutoModelForImageClassification.from_pretrained(folder)


def test_report(folder):
    found = report(folder)
    assert found["variant"] == "sparse"
    assert found["seeds"] == [5, 6]
    assert found["wall_seconds"] > 0
    assert found["versions"]["transformers"].startswith("5.")
    assert found["endpoints"].keys() == {"5", "6"}
    (pair,) = found["pairs"]
    assert pair["seeds"] == [5, 6]
    assert list(pair["methods"]) == METHODS
    for method in pair["methods"].values():
        assert method["t"] == [0.0, 0.5, 1.0]
        rise = method["loss"][1] - (method["loss"][0] + method["loss"][2]) / 2
        assert method["loss_barrier"] == pytest.approx(max(rise, 0), abs=1e-12)
        assert method["loss"][0] == pytest.approx(found["endpoints"]["5"]["loss"])
        assert method["accuracy"][0] == found["endpoints"]["5"]["accuracy"]


def test_ranks(folder):
    """The best of all orders is first; a method's rank and L^ follow from its barrier."""
    methods = report(folder)["pairs"][0]["methods"]
    assert methods["naive"]["rank"] is methods["rescale_control"]["rank"] is None
    best = methods["best_of_all_orders"]
    assert (best["rank"], best["l_hat"]) == (1, 0)
    for name in ("units", "gate", "gram", "joint"):
        assert 1 <= methods[name]["rank"] <= factorial(TINY.num_experts)
        assert (methods[name]["rank"] == 1) == (methods[name]["loss_barrier"] == best["loss_barrier"])
        assert methods[name]["loss_barrier"] >= best["loss_barrier"]
        span = max(methods["naive"]["loss_barrier"] - best["loss_barrier"], 1e-12)  # training may reach no barrier
        expected = 100 * (methods[name]["loss_barrier"] - best["loss_barrier"]) / span
        assert methods[name]["l_hat"] == pytest.approx(expected)


def test_a_pair_without_a_barrier(folder):
    """Per cent of nothing are a dash, in the sentence and in the table; of something, a number."""
    content = report(folder)
    naive = content["pairs"][0]["methods"]["naive"]
    naive["loss"] = [1.0, 2.0, 1.0]
    assert "(- %)" not in Report.from_json(content).summary()
    naive["loss"] = [1.0, 1.0, 1.0]
    assert "(- %)" in Report.from_json(content).summary()
    assert "| -  " in Report.from_json(content).table()


def test_scrambled_endpoint_is_recovered(folder):
    scramble = report(folder)["scramble"]
    assert scramble["naive_loss_barrier"] > 0
    assert scramble["aligned_loss_barrier"] == 0
    assert scramble["recovered_bit_for_bit"] is True


def test_the_merge_is_what_the_alignment_says(folder):
    a, b, merged = load(folder / "endpoints/seed-5"), load(folder / "endpoints/seed-6"), load(folder / "merged")
    alignment = Alignment.from_pretrained(folder / "alignments/5-6")
    assert alignment == align(a, b, "gate")
    expected = merge(a, b, alignment, t=0.5, force=True).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in merged.state_dict().items())


def test_endpoints_share_their_start_but_are_their_own(folder):
    a, b = load(folder / "endpoints/seed-5"), load(folder / "endpoints/seed-6")
    assert not torch.equal(a.vit.layers[0].mlp.experts.up_proj, b.vit.layers[0].mlp.experts.up_proj)
    assert not torch.equal(a.classifier.weight, b.classifier.weight)


def test_card(folder):
    card = ModelCard.load(folder / "README.md")
    (result,) = card.data.eval_results
    assert result.metric_value == report(folder)["pairs"][0]["methods"]["gate"]["accuracy"][1]
    assert "hf-moe-lmc demo --variant sparse --seeds 5 6" in card.text
    assert "Averaged as they are, the models meet a loss barrier of" in card.text
    assert f"{report(folder)['pairs'][0]['methods']['joint']['loss_barrier']:.3f}" in card.text
    assert (folder / "barrier.png").stat().st_size > 10_000


def test_a_second_run_shows_what_the_first_found(folder):
    """All of it, and without evaluating: no file is written. Other seeds have another report."""
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    shown = run_demo(folder, SEEDS, TINY)
    assert json.loads(json.dumps(shown.to_json())) == report(folder)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    assert demo_run._earlier(folder, SEEDS[::-1], shown.versions) is None
    assert demo_run._earlier(folder, SEEDS, shown.versions | {"torch": "2.0"}) is None


def test_a_killed_run_goes_on_to_the_same_result(folder, tmp_path):
    """kill -9 as soon as the first endpoint is there; no name ever holds half a model."""
    out = tmp_path / "out"
    process = forked.start(run_demo, out, SEEDS, TINY)
    while not (out / "endpoints/seed-5").exists():
        assert process.is_alive(), "the run ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (out / "report.json").exists()
    saved = (out / "endpoints/seed-5/model.safetensors").stat().st_mtime_ns
    run_demo(out, SEEDS, TINY)
    assert (out / "endpoints/seed-5/model.safetensors").stat().st_mtime_ns == saved
    assert without_clock(out) == without_clock(folder)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES.remove(ROOT / "docs/adding-a-family.md")  # has tests of its own


def blocks(page: Path, language: str) -> list[str]:
    """The page's blocks of code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def link(demo: Path, place: Path) -> None:
    """The names that the pages call the demo and two models by: an endpoint, and a rewrite of it with other weights.

    The tiny demo trains too little for its own endpoints to have related experts.
    """
    (place / "demo-sparse").symlink_to(demo)
    (place / "A").symlink_to(demo / "endpoints/seed-5")
    other, _ = scramble(load(place / "A"))
    with torch.no_grad():
        other.classifier.weight.mul_(1.1)
    shutil.copytree(place / "A", place / "B")
    other.save_pretrained(place / "B")


CODE = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", CODE, ids=lambda page: page.name)
def test_the_code_of_the_pages_runs(page, folder, hub, tmp_path, monkeypatch):
    link(folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(REPAIRS):  # a page adds one
        exec("\n".join(blocks(page, "python")), {})
    if page.name == "README.md":
        assert type(load(tmp_path / "merged")).__name__ == "MoeViTForImageClassification"
    elif page.name == "aligning.md":
        assert Alignment.from_pretrained(tmp_path / "alignment").layers
    elif page.name == "publishing.md":
        assert hub.repositories.keys() == {"me/digits-alignment", "me/digits-merged"}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=lambda page: page.name)
def test_the_commands_of_the_pages_run(page, folder, tmp_path, monkeypatch, capsys):
    """Word for word; those for several processes by one (tests/alignment/test_processes.py has several)."""
    link(folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "yaml"):
        Path(block.split()[1]).write_text(block)
    commands = [line for block in blocks(page, "sh") for line in block.splitlines()]
    for command in commands:
        program, arguments = re.fullmatch(r"(hf-moe-lmc|.*(?:launch|torchrun) .* hf_moe_lmc) (.*)", command).groups()
        assert cli.main(shlex.split(arguments)) == 0, f"{program} {arguments}"
    assert capsys.readouterr().out


@pytest.mark.parametrize("seeds", [(5,), (5, 5)])
def test_too_few_seeds(tmp_path, seeds):
    with pytest.raises(BadInputError, match="at least two different seeds"):
        run_demo(tmp_path / "out", seeds, TINY)
    assert not (tmp_path / "out").exists()


def test_the_folder_of_another_recipe_is_left_alone(folder):
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    with pytest.raises(OutputError, match="holds a demo run with variant = sparse, not shared"):
        run_demo(folder, SEEDS, replace(TINY, variant="shared"))
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="is not empty and no demo run"):
        run_demo(tmp_path, SEEDS, TINY)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_run, "Accelerator", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(BadInputError, match="the demo runs in one process, not in 2"):
        run_demo(tmp_path / "out", SEEDS, TINY)
    assert not (tmp_path / "out").exists()
