import os
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hf_moe_lmc.checkpoints import MANIFEST_NAME, output_folder
from hf_moe_lmc.errors import BadInputError, OutputError
from tests import forked

RECIPE = {"t": 0.5, "names": ("a", "b")}


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def source(tmp_path) -> Path:
    (tmp_path / "input").mkdir()
    return tmp_path / "input"


@contextmanager
def writing(out, recipe=RECIPE, inputs=(), size=0, overwrite=False):
    with output_folder(out, recipe, inputs, size, overwrite) as staged:
        yield staged


def write(out, text="new", **options):
    with writing(out, **options) as staged:
        (staged.path / MANIFEST_NAME).write_text(text)


def interrupt(out, steps=("one", "two"), **options):
    """A run that ends in the middle."""
    with suppress(KeyboardInterrupt), writing(out, **options) as staged:
        for step in steps:
            (staged.path / step).write_text(step)
            staged.journal.record(step, {"of": step})
        raise KeyboardInterrupt


def resumed(out, **options) -> list[str]:
    """The steps that another run need not do again."""
    with writing(out, **options) as staged:
        steps = list(staged.journal.done)
        assert sorted(steps) == sorted(file.name for file in staged.path.iterdir())
        assert all(staged.journal.done[step] == {"of": step} for step in steps)
        (staged.path / MANIFEST_NAME).write_text("new")
    return steps


def alone(out) -> bool:
    """Whether nothing but the output lies in its folder."""
    return [path for path in out.parent.iterdir() if path.name != "input"] == ([out] if out.exists() else [])


def journal(out) -> Path:
    return out.parent / ".out.hf_moe_lmc" / "journal.jsonl"


@pytest.mark.parametrize("there_is", ["nothing", "an empty folder"])
def test_a_new_output(out, there_is):
    if there_is == "an empty folder":
        out.mkdir()
    with writing(out) as staged:
        (staged.path / "file").write_text("new")
        assert not out.exists() or not any(out.iterdir())
    assert [path.name for path in out.iterdir()] == ["file"]
    assert alone(out)


def test_an_interrupted_run_goes_on(out):
    interrupt(out)
    assert not out.exists()
    assert resumed(out) == ["one", "two"]
    assert alone(out)


def test_another_recipe_starts_clean(out):
    interrupt(out)
    assert resumed(out, recipe={"t": 0.25}) == []
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST_NAME]


def test_a_journal_cut_off_anywhere(out):
    """Steps whose line is whole are done; what is no journal at all means a clean start."""
    interrupt(out)
    whole = journal(out).read_bytes()
    lines = whole.splitlines(keepends=True)
    for length in range(len(whole) + 1):
        journal(out).write_bytes(whole[:length])
        done = sum(len(b"".join(lines[: n + 1])) <= length for n in (1, 2))
        for step in ("one", "two"):
            (journal(out).parent / "new").mkdir(exist_ok=True)
            (journal(out).parent / "new" / step).write_text(step)
        with suppress(KeyboardInterrupt), writing(out) as staged:
            assert list(staged.journal.done) == ["one", "two"][:done]
            staged.journal.record("three", 3)
            raise KeyboardInterrupt
        assert journal(out).read_bytes().startswith(b"".join(lines[: done + 1]))


@pytest.mark.parametrize("content", [b"", b"\n", b"null\n", b"{}\n", b"\0" * 64, b'[1]\n{"step": 3}\n', b"\xff\n"])
def test_what_is_no_journal(out, content):
    interrupt(out)
    journal(out).write_bytes(content)
    assert resumed(out) == []


def test_a_refused_input_leaves_nothing(out):
    with suppress(BadInputError), writing(out) as staged:
        (staged.path / "file").write_text("half")
        raise BadInputError("weights are NaN")
    assert alone(out)
    assert not out.exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_files_are_refused(out, overwrite):
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds files that are not of this package"):
        write(out, overwrite=overwrite)
    assert (out / "thesis.txt").read_text() == "mine"
    assert alone(out)


def test_an_earlier_output_is_replaced_on_request_only(out):
    write(out, "old")
    with pytest.raises(OutputError, match="--overwrite"):
        write(out)
    assert (out / MANIFEST_NAME).read_text() == "old"
    write(out, overwrite=True)
    assert (out / MANIFEST_NAME).read_text() == "new"
    assert alone(out)


def test_a_file_in_the_way(out):
    out.write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        write(out, overwrite=True)


def test_a_refusal_keeps_what_a_killed_run_has_left(out):
    interrupt(out)
    with pytest.raises(OutputError, match="are needed; make room"):
        write(out, size=2**60)
    assert resumed(out) == ["one", "two"]


def test_free_space_is_checked(out):
    with pytest.raises(OutputError, match=r"GB free, but 1152921504\.6 GB are needed"):
        write(out, size=2**60)
    assert alone(out)


@pytest.mark.parametrize("place", ["input", "input/inside", "input/deep/inside", ".", "link", "link/inside"])
def test_inputs_are_out_of_reach(source, place):
    (source / "deep").mkdir()
    (source.parent / "link").symlink_to(source)
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(OutputError, match=r"is, contains or lies in the input|is a link"):
        write(source.parent / place, inputs=[source], overwrite=True)
    assert sorted(source.parent.rglob("*")) == before


def test_a_linked_input_is_out_of_reach(source):
    (source.parent / "link").symlink_to(source)
    with pytest.raises(OutputError, match="is, contains or lies in the input"):
        write(source / "inside", inputs=[source.parent / "link"])


def test_a_linked_file_of_an_input_is_out_of_reach(source, out):
    """As in a cache of the Hub: the folder is elsewhere, the weights would be deleted."""
    write(out, "weights")
    (source / "model.safetensors").symlink_to(out / MANIFEST_NAME)
    with pytest.raises(OutputError, match="is, contains or lies in the input"):
        write(out, inputs=[source, source / "model.safetensors"], overwrite=True)


def test_a_missing_parent(tmp_path):
    with pytest.raises(OutputError, match="is not a folder; create it first"):
        write(tmp_path / "absent" / "out")


def test_a_parent_that_nobody_may_write():
    with pytest.raises(OutputError, match="cannot write to /proc: "):
        write(Path("/proc/out"))


def test_one_writer_at_a_time(out):
    with writing(out) as staged:
        with pytest.raises(OutputError, match="in use by another process"):
            write(out)
        (staged.path / MANIFEST_NAME).write_text("first")
    assert (out / MANIFEST_NAME).read_text() == "first"


def test_the_lock_of_a_dead_process_is_void(out):
    assert forked.fork(lambda: die_writing(out)) == 9
    assert resumed(out) == ["one"]


def test_the_lock_of_another_host_holds(out):
    """Whether its process lives cannot be asked from here."""
    lock = out.with_name(".out.hf_moe_lmc.lock")
    lock.write_text("1\nanother-host\n")
    with pytest.raises(OutputError, match=f"{lock} .delete it if its process is dead.* in use by another process"):
        write(out)
    lock.unlink()
    write(out)
    assert alone(out)


def die_writing(out) -> None:
    with writing(out) as staged:
        (staged.path / "one").write_text("one")
        staged.journal.record("one", {"of": "one"})
        os._exit(9)


def test_an_output_that_took_the_place_of_one_being_replaced(out):
    """Killed between the two renames; then somebody else writes there."""
    write(out, "old")
    interrupt(out, overwrite=True)
    out.rename(journal(out).parent / "old")
    write(out.with_name("another"), "another")
    out.with_name("another").rename(out)
    with pytest.raises(OutputError, match="was being replaced by a run that was killed"):
        write(out, overwrite=True)
    assert (out / MANIFEST_NAME).read_text() == "another"
    assert (journal(out).parent / "old" / MANIFEST_NAME).read_text() == "old"


def test_an_error_between_the_two_renames_restores(out, monkeypatch):
    write(out, "old")
    rename, names = os.rename, []

    def failing(source, target):
        names.append(Path(source).name)
        if names[-1] == "new":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(KeyboardInterrupt):
        write(out, overwrite=True)
    assert (out / MANIFEST_NAME).read_text() == "old"
    assert names == ["out", "new", "old"]
