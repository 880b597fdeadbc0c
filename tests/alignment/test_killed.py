"""A merge that is killed, with kill -9, after everything that it changes on the disk."""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from hf_moe_lmc.alignment import (
    AlignmentConfig,
    Merge,
    MergeRepairs,
    WriteOptions,
    align_pair,
    open_models,
    shares_at,
    write,
)
from hf_moe_lmc.errors import OutputError
from tests import forked
from tests.tiny_pair import save_pair

CALLS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.fsync"}
STEPS = 3


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Two tiny checkpoints in shards; in memory, where fsync costs nothing."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as path:
        save_pair(Path(path))
        yield Path(path)


@dataclass
class Run:
    """One way to write `folder / "out"`, repeated in forks of this process."""

    folder: Path
    overwrite: bool
    points: tuple[float, ...]

    def __post_init__(self) -> None:
        models = open_models([self.folder / "a", self.folder / "b"])
        self.work = Merge(models, [align_pair(models, AlignmentConfig())])
        self.out = self.folder / "out"

    def merge(self) -> None:
        points = {f"t-{t}" if len(self.points) > 1 else "": shares_at(t) for t in self.points}
        self.work.write(self.out, points, MergeRepairs(), WriteOptions(overwrite=self.overwrite))

    def killed_at(self, moment: int) -> None:
        """Merge until the call number `moment`, then kill -9."""

        def at(count: int) -> None:
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        watched(self.merge, at)

    def resumed(self) -> None:
        """Merge, asserting that exactly what is not in the journal is computed."""
        steps, write_step = len(done(self.folder)), write._write
        with mock.patch.object(write, "_write", side_effect=write_step) as counted:
            self.merge()
        assert counted.call_count == (STEPS - steps) * len(self.points)

    def refused(self) -> None:
        """Merge where there is an output already."""
        with pytest.raises(OutputError, match="earlier output"):
            self.merge()


def watched(run: Callable[[], None], at: Callable[[int], None]) -> None:
    """Call `at(count)` before every file that is opened, and everything else that is asked of the file system."""
    count, on = -1, True

    def before(event: str, arguments: object = ()) -> None:
        nonlocal count, on
        if on and event in CALLS:
            on = False
            at(count := count + 1)
            on = True

    sys.addaudithook(before)
    fsync = os.fsync
    with mock.patch("os.fsync", side_effect=lambda file: (before("os.fsync"), fsync(file))):
        run()
    on = False


def moments(run: Run) -> list[int]:
    """The calls before which the disk is in a state in which it was not before."""
    states: dict[str, int] = {}

    def note(count: int) -> None:
        # Before an earlier output is replaced, all goes as without it.
        if not run.overwrite or len(done(run.folder)) == STEPS or states:
            states.setdefault(repr(content(run.folder)), count)

    watched(run.merge, note)
    return list(states.values())


def content(folder: Path) -> dict[str, bytes] | None:
    if not folder.exists():
        return None
    files = sorted(folder.rglob("*"))
    return {str(file.relative_to(folder)): file.read_bytes() if file.is_file() else b"" for file in files}


def done(folder: Path) -> list[str]:
    """Steps in the journal that a killed run has left, if they can be gone on with."""
    work = folder / ".out.hf_moe_lmc"
    if not (work / "new").is_dir():
        return []
    lines = (work / "journal.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line)["step"] for line in lines[1:] if line.endswith("\n")]


def kill_at_every_moment(folder: Path, overwrite: bool, points: tuple[float, ...], result: Path) -> None:
    """Write to `result` what went wrong, and which states of the output were seen with how many steps done."""
    run = Run(folder, overwrite, points)
    if overwrite:
        replace(run, points=(0.9,)).merge()
        run.out.rename(folder / "before")
    before = content(folder / "before")

    def prepare() -> None:
        shutil.rmtree(run.out, ignore_errors=True)
        if overwrite:
            shutil.copytree(folder / "before", run.out)

    prepare()
    every = moments(run)
    after, left = content(run.out), sorted(folder.iterdir())
    wrong, nameless, seen = [], [], set()
    for moment in every:
        prepare()
        killed = forked.fork(partial(run.killed_at, moment))
        found = content(run.out)
        state = {repr(before): "before", "None": "absent", repr(after): "after"}.get(repr(found), "mixed")
        steps = len(done(folder))
        if is_nameless(folder):
            nameless.append(moment)
        again = forked.fork(run.refused if state == "after" and not overwrite else run.resumed)
        seen.add((state, steps))
        if killed != -signal.SIGKILL or again or content(run.out) != after or sorted(folder.iterdir()) != left:
            wrong.append(f"call {moment}: {killed=} {state=} {steps=} {again=} {sorted(folder.iterdir())}")
    assert len(nameless) == (0 if overwrite else 1)  # replacing begins after that
    result.write_text(json.dumps([wrong, len(every), sorted(seen)]))


def is_nameless(folder: Path) -> bool:
    """Whether the lock names no process yet; it is made older then, for a young one may be about to name one."""
    lock = folder / ".out.hf_moe_lmc.lock"
    if not lock.exists() or lock.read_bytes():
        return False
    os.utime(lock, (0, 0))
    return True


@pytest.mark.parametrize(("overwrite", "points"), [(False, (0.5,)), (True, (0.25, 0.5))])
def test_killed_after_every_change_on_the_disk(folder, overwrite, points, tmp_path):
    """The output is as before, or complete; the next run computes what the journal lacks, and gives the same bytes."""
    result = tmp_path / "result.json"
    process = forked.start(kill_at_every_moment, folder, overwrite, points, result)
    process.join()
    assert process.exitcode == 0
    wrong, count, seen = json.loads(result.read_text())
    assert wrong == []
    assert count > 10
    # With an earlier output there is a moment without any, between two renames; the next run puts the old one back.
    replaced = [["absent", STEPS], ["after", 0], ["before", STEPS]]
    assert seen == (replaced if overwrite else [*(["absent", n] for n in range(STEPS + 1)), ["after", 0]])
