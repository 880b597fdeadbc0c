import errno
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hf_moe_lmc.checkpoints import MANIFEST_NAME, check_output, durable, output_folder, staging
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
        (staged.path / MANIFEST_NAME).write_text(json.dumps({"text": text}))


def written(out) -> str:
    return json.loads((out / MANIFEST_NAME).read_bytes())["text"]


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
        (staged.path / MANIFEST_NAME).write_text('{"text": "new"}')
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
    with pytest.raises(OutputError, match="holds files, and no earlier output of this command"):
        write(out, overwrite=overwrite)
    assert (out / "thesis.txt").read_text() == "mine"
    assert alone(out)


def test_an_earlier_output_is_replaced_on_request_only(out):
    write(out, "old")
    with pytest.raises(OutputError, match="--overwrite"):
        write(out)
    assert written(out) == "old"
    write(out, overwrite=True)
    assert written(out) == "new"
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
    with pytest.raises(OutputError, match="bytes free, but 1,152,921,504,606,846,976 are needed"):
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
        (staged.path / MANIFEST_NAME).write_text('{"text": "first"}')
    assert written(out) == "first"


def test_the_lock_of_a_dead_process_is_void(out):
    assert forked.fork(lambda: die_writing(out)) == 9
    assert resumed(out) == ["one"]


def test_a_lock_that_names_no_process_lapses(out):
    """Its process was killed between making it and writing who made it."""
    lock = out.with_name(".out.hf_moe_lmc.lock")
    lock.touch()
    with pytest.raises(OutputError, match="in use by another process"):  # it may be about to
        write(out)
    os.utime(lock, (0, 0))
    write(out)
    assert alone(out)


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
    assert written(out) == "another"
    assert written(journal(out).parent / "old") == "old"


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
    assert written(out) == "old"
    assert names == ["probe", "out", "old", "out", "new", "old"]


@pytest.mark.parametrize("name", ["thesis.txt", "adapters/adapter_model.safetensors", "my.safetensors", "t-0.5/x.json"])
def test_files_of_somebody_else_in_an_earlier_output_are_not_deleted(out, name):
    write(out)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    for check in (lambda: check_output(out, [], True), lambda: write(out, overwrite=True)):
        with pytest.raises(OutputError, match=f"{out / name} was not written by this package, and would be lost"):
            check()
    assert (out / name).read_text() == "mine"
    assert alone(out)


@pytest.mark.parametrize("name", [".", "..", "", "\0", "\ud800", "x" * 300])
def test_names_in_an_earlier_output_that_are_no_folders_in_it(out, name):
    write(out)
    (out / MANIFEST_NAME).write_text(json.dumps({"folders": {name: {}}}))
    write(out, overwrite=True)
    assert alone(out)


def test_all_files_of_an_earlier_output_are_known(out):
    with writing(out) as staged:
        for name in ("t-0.25", "t-0.5"):
            folder = staged.path / name
            (folder / "report").mkdir(parents=True)
            (folder / "additional_chat_templates").mkdir()
            index = {"weight_map": {"a": "odd name [1].safetensors"}}
            files = {"model.safetensors.index.json": json.dumps(index), MANIFEST_NAME: "{}"}
            names = (
                "odd name [1].safetensors",
                "config.json",
                "README.md",
                "report/curves.png",
                "LICENSE",
                "tekken.json",
            )
            for file in (*names, "additional_chat_templates/a.jinja"):
                (folder / file).write_text("")
            for file, content in files.items():
                (folder / file).write_text(content)
        (staged.path / MANIFEST_NAME).write_text(json.dumps({"folders": {"t-0.25": {}, "t-0.5": {}}}))
    check_output(out, [], True)
    write(out, overwrite=True)
    assert [path.name for path in out.iterdir()] == [MANIFEST_NAME]


def without(monkeypatch, function: str, number: int, applies=lambda *paths: True) -> None:
    """A file system on which `os.function` fails."""
    real = getattr(os, function)

    def failing(*args):
        if applies(*args):
            raise OSError(number, os.strerror(number))
        return real(*args)

    monkeypatch.setattr(os, function, failing)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EXDEV, errno.EPERM, errno.EINVAL])
@pytest.mark.parametrize("there_is", ["nothing", "an empty folder"])
def test_where_folders_cannot_be_renamed_they_are_copied(out, monkeypatch, number, there_is):
    if there_is == "an empty folder":
        out.mkdir()
    without(monkeypatch, "rename", number, lambda source, _: Path(source).is_dir())
    interrupt(out)
    assert resumed(out) == ["one", "two"]
    assert sorted(path.name for path in out.iterdir()) == sorted([MANIFEST_NAME, "one", "two"])
    assert alone(out)
    for step in ("one", "two"):
        (out / step).unlink()
    with pytest.raises(OutputError, match="cannot be replaced, for folders cannot be renamed there"):
        write(out, overwrite=True)
    assert written(out) == "new"


@pytest.mark.parametrize("last", ["one", "two", MANIFEST_NAME])
def test_killed_while_it_is_copied(out, monkeypatch, last):
    """A part of an output has no manifest, and the next run puts its own in its place."""
    without(monkeypatch, "rename", errno.ENOSYS, lambda source, _: Path(source).is_dir())
    interrupt(out)
    copy = durable.shutil.copyfile

    def failing(source, target):
        copy(source, target)
        if target.name == last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(durable.shutil, "copyfile", failing)
        with pytest.raises(KeyboardInterrupt):
            resumed(out)
    assert (out / MANIFEST_NAME).exists() == (last == MANIFEST_NAME)
    with writing(out) as staged:
        assert not [*out.iterdir()]
        assert [*staged.journal.done] == ["one", "two"]
    assert sorted(path.name for path in out.iterdir()) == sorted([MANIFEST_NAME, "one", "two"])
    assert alone(out)


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV])
def test_a_folder_that_cannot_be_moved_is_refused_before_the_work(out, monkeypatch, number):
    """As a bind mount, or a folder of a lower layer of overlayfs."""
    out.mkdir()
    without(monkeypatch, "rename", number, lambda source, _: source == out)
    with pytest.raises(OutputError, match=r"cannot be moved .*; give a folder that is not there yet"), writing(out):
        pytest.fail("the work began")
    assert out.is_dir()
    assert alone(out)


def test_a_finished_output_that_cannot_be_moved_is_kept(out, monkeypatch):
    with monkeypatch.context() as patch:
        without(patch, "rename", errno.EIO, lambda source, _: Path(source).name == "new")
        with pytest.raises(OutputError, match=r"the output is complete in .*/new, but cannot be moved to .*/out"):
            write(out)
    assert not out.exists()
    assert written(journal(out).parent / "new") == "new"
    with writing(out) as staged:
        assert written(staged.path) == "new"
    assert written(out) == "new"
    assert alone(out)


def test_an_earlier_output_comes_back_if_the_new_one_cannot_be_moved(out, monkeypatch):
    write(out, "old")
    without(monkeypatch, "rename", errno.EIO, lambda source, _: Path(source).name == "new")
    with pytest.raises(OutputError, match="the output is complete in"):
        write(out, overwrite=True)
    assert written(out) == "old"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EBADF])
def test_where_nothing_waits_for_the_disk(out, monkeypatch, number):
    without(monkeypatch, "fsync", number)
    write(out)
    assert written(out) == "new"
    assert alone(out)


def test_a_disk_that_fails_is_told(out, monkeypatch):
    without(monkeypatch, "fsync", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        write(out)
    assert not out.exists()


def test_nothing_fails_once_the_output_is_there(out, monkeypatch):
    synced = staging.sync
    monkeypatch.setattr(staging, "sync", lambda path: without_parent(path, out, synced))
    write(out)
    assert written(out) == "new"


def without_parent(path: Path, out: Path, synced) -> None:
    if path == out.parent:
        raise OSError(errno.EIO, "the disk failed")
    synced(path)


def test_temporary_files_of_killed_writers_stay_behind(out):
    with writing(out) as staged:
        (staged.path / "part").mkdir()
        for name in ("alignment.safetensors", ".tmpAb3xYz", "part/.tmpQQ"):
            (staged.path / name).write_text("")
            (staged.path / name).chmod(0o600)
        (staged.path / MANIFEST_NAME).write_text("{}")
    files = [path for path in out.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["alignment.safetensors", MANIFEST_NAME]
    assert {path.stat().st_mode for path in files} == {(out / MANIFEST_NAME).stat().st_mode}


@pytest.mark.parametrize("there_is", ["an empty folder", "an earlier output"])
def test_permissions_are_those_of_the_folder_that_was_there(out, there_is):
    write(out) if there_is == "an earlier output" else out.mkdir()
    out.chmod(0o2770)
    write(out, overwrite=True)
    assert out.stat().st_mode & 0o7777 == 0o2770


@pytest.mark.parametrize("place", [".", ".."])
def test_the_current_folder(tmp_path, monkeypatch, place):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(OutputError, match="is, or contains, the current folder"):
        write(Path(place))


@pytest.mark.parametrize("length", [180, 243, 255])
def test_long_names(out, length):
    out = out.with_name("a" * length)
    interrupt(out)
    assert resumed(out) == ["one", "two"]
    assert alone(out)


def test_a_name_that_is_too_long(out):
    for check in (write, lambda path: check_output(path, [], False)):
        with pytest.raises(OutputError, match=r"cannot write to .*; give another output"):
            check(out.with_name("a" * 256))


@pytest.mark.parametrize("name", [b"out\xff", b"\xff/out"])
def test_a_path_that_is_not_utf_8(tmp_path, name):
    out = tmp_path / os.fsdecode(name)
    out.parent.mkdir(exist_ok=True)
    for check in (write, lambda path: check_output(path, [], False)):
        with pytest.raises(OutputError, match="is not UTF-8; give another output") as refusal:
            check(out)
        str(refusal.value).encode()


def test_scratch_is_kept_for_the_run_that_goes_on_and_gone_after_it(out):
    def run(recipe):
        with suppress(KeyboardInterrupt), writing(out, recipe) as staged:
            kept = [path.name for path in staged.scratch.iterdir()]
            (staged.scratch / "layer").write_text("")
            (staged.path / MANIFEST_NAME).write_text("{}")
            if recipe["run"] < 2:
                raise KeyboardInterrupt
        return kept

    assert [run({"run": number}) for number in (0, 0, 1, 2)] == [[], ["layer"], [], []]
    assert [path.name for path in out.iterdir()] == [MANIFEST_NAME]
    assert alone(out)


def test_check_output_leaves_nothing(out):
    check_output(out, [], False)
    assert not [*out.parent.iterdir()]
    with pytest.raises(OutputError, match="cannot write to /proc"):
        check_output(Path("/proc/out"), [], False)
