"""An output folder that appears complete or not at all.

All is written into a hidden folder beside it, under a lock; a journal says what has reached the disk, so that a killed
run goes on where it was; one rename ends it.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_moe_lmc.errors import MoeLmcError, OutputError

MANIFEST_NAME = "hf_moe_lmc_manifest.json"
JOURNAL_NAME = "journal.jsonl"

# Sha-256 digests of the tensors that one step has written, by key.
Digests = dict[str, str]


@dataclass(frozen=True)
class StagedFolder:
    """A folder under construction.

    Args:
        path: write here.
        done: steps that a killed run has left complete -> digests of what they wrote.
    """

    path: Path
    done: dict[str, Digests]

    def record(self, step: str, digests: Digests) -> None:
        """Note that all `step` wrote is on disk. Call it after fsync."""
        _append(self.path / JOURNAL_NAME, {"step": step, "digests": digests})
        self.done[step] = digests

    def write_file(self, name: str, content: bytes) -> None:
        """A small file, on disk when this returns."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def output_folder(
    out: Path,
    recipe: Mapping[str, Any],
    inputs: Sequence[Path],
    size: int,
    overwrite: bool = False,
    marker: str = MANIFEST_NAME,
) -> Iterator[StagedFolder]:
    """Write `out` inside this context; it appears when the context ends without an error.

    Interrupted or killed, the same `recipe` goes on from the journal; any other starts clean.

    Args:
        out: absent, empty, or with `overwrite` an earlier output of this package.
        recipe: all that determines the output: inputs, options, versions; JSON values.
        inputs: folders that are read meanwhile.
        size: bytes to be written.
        overwrite: whether an earlier output may be replaced.
        marker: the file by which an earlier output is known.

    Raises:
        OutputError: `out` may not be written, or is being written by another process; it is left as it was.
    """
    out = Path(os.path.abspath(out))
    _check_apart(out, inputs)
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent}, which is to hold {out.name}, is not a folder; create it first")
    staging, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    with _locked(staging):
        _recover(out, old)
        try:
            _check_free(out, overwrite, marker)
            staged = _resumed(staging, recipe) or _started(staging, recipe)
            _check_space(out.parent, size - _allocated(staging))
            yield staged
        except MoeLmcError:
            shutil.rmtree(staging)
            raise
        (staging / JOURNAL_NAME).unlink()
        _sync(staging)
        if out.exists() and any(out.iterdir()):
            os.rename(out, old)
        os.rename(staging, out)
        _sync(out.parent)
        shutil.rmtree(old, ignore_errors=True)


def _check_apart(out: Path, inputs: Sequence[Path]) -> None:
    target = out.resolve()
    if out.is_symlink():
        raise OutputError(f"{out} is a link; give a folder of its own")
    for folder in inputs:
        source = folder.resolve()
        if target == source or source in target.parents or target in source.parents:
            raise OutputError(f"{out} is, contains or lies in the input {folder}; give another output")


@contextmanager
def _locked(staging: Path) -> Iterator[None]:
    """Hold `staging`, which is made if need be, against other processes; a process that dies lets go of it."""
    try:
        staging.mkdir(exist_ok=True)
        descriptor = os.open(staging, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{staging.parent} may not be written ({error.strerror}); give another output") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not staging.exists() or os.fstat(descriptor).st_ino != staging.stat().st_ino:
            raise BlockingIOError  # it was finished a moment ago
        yield
    except BlockingIOError:
        raise OutputError(
            f"{staging} is being written by another process; wait for it or give another output"
        ) from None
    finally:
        os.close(descriptor)


def _recover(out: Path, old: Path) -> None:
    """What a run killed between its last two renames leaves."""
    if old.exists() and not out.exists():
        os.rename(old, out)
    shutil.rmtree(old, ignore_errors=True)


def _check_free(out: Path, overwrite: bool, marker: str) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out} is a file; give another output")
    if any(out.iterdir()):
        if not (out / marker).is_file():
            raise OutputError(f"{out} holds files that are not of this package; give another output")
        if not overwrite:
            raise OutputError(f"{out} holds an earlier output; replace it with --overwrite or give another output")


def _resumed(staging: Path, recipe: Mapping[str, Any]) -> StagedFolder | None:
    journal = staging / JOURNAL_NAME
    try:
        content = journal.read_bytes()
        # A line without its end was being written when the run was killed.
        complete = content.rpartition(b"\n")[0] + b"\n"
        first, *steps = [json.loads(line) for line in complete.splitlines()]
    except (OSError, ValueError):
        return None
    if first != {"recipe": recipe}:
        return None
    os.truncate(journal, len(complete))
    return StagedFolder(staging, {step["step"]: step["digests"] for step in steps})


def _started(staging: Path, recipe: Mapping[str, Any]) -> StagedFolder:
    for left in staging.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    _append(staging / JOURNAL_NAME, {"recipe": recipe})
    return StagedFolder(staging, {})


def _append(journal: Path, entry: Mapping[str, Any]) -> None:
    with journal.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _allocated(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OutputError(f"{folder} has {free / 1e9:.1f} GB free, but {size / 1e9:.1f} GB are needed; make room")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
