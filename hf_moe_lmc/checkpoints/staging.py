"""An output folder that appears complete or not at all.

All is written into a hidden folder beside it: what is new, a journal of it, and for a moment what is replaced. A
killed run goes on where the journal ends; one rename puts the new in its place.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import SoftFileLock, Timeout

from hf_moe_lmc.errors import MoeLmcError, OutputError

from .durable import Journal, sync

MANIFEST_NAME = "hf_moe_lmc_manifest.json"
LOCK_SECONDS = 0.5  # enough to find out that the process that holds a lock is dead


@dataclass(frozen=True)
class StagedFolder:
    """A folder under construction.

    Args:
        path: write here.
        journal: of the steps that are finished, some of them perhaps by a run that was killed.
    """

    path: Path
    journal: Journal = field(repr=False)


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
        inputs: files and folders that are read meanwhile.
        size: bytes to be written.
        overwrite: whether an earlier output may be replaced.
        marker: the file by which an earlier output is known.

    Raises:
        OutputError: `out` may not be written, or is being written by another process; it is left as it was.
    """
    out = Path(os.path.abspath(out))
    _check_place(out, inputs)
    work = out.with_name(f".{out.name}.hf_moe_lmc")
    new, old = work / "new", work / "old"
    recipe = json.loads(json.dumps(recipe))  # as the journal gives it back
    with _locked(out, work):
        try:
            _restore(new, out, old)
            _check_free(out, overwrite, marker)
            _check_space(out.parent, size - _allocated(work))
        except OutputError:
            # Refused at the door: work that a killed run has left is kept.
            if not new.is_dir():
                _discard(work)
            raise
        journal = Journal.read(work / "journal.jsonl")
        if journal.recipe != recipe or not new.is_dir():
            _discard(new)
            journal = journal.start(recipe)
            new.mkdir()
        try:
            yield StagedFolder(new, journal)
            _put_in_place(new, out, old)
        except MoeLmcError:
            _discard(work)
            raise
        _discard(work)


@contextmanager
def _locked(out: Path, work: Path) -> Iterator[None]:
    """Within, the folder `work` exists and is this process's; the lock of a dead process is void."""
    # A file that is there or not, for not every file system knows other locks.
    lock = SoftFileLock(work.with_name(f"{work.name}.lock"), LOCK_SECONDS)
    with ExitStack() as held:
        try:
            held.enter_context(lock)
            work.mkdir(exist_ok=True)
        except Timeout:
            raise OutputError(
                f"{lock.lock_file} (delete it if its process is dead) says that {out.name} is in use by another "
                "process; wait for it or give another output"
            ) from None
        except OSError as error:
            raise OutputError(f"cannot write to {work.parent}: {error.strerror}; give another output") from None
        yield


def check_output(out: Path, inputs: Sequence[Path], overwrite: bool, marker: str = MANIFEST_NAME) -> None:
    """Check all that `output_folder` asks of `out`, before any work is done for it.

    Raises:
        OutputError: `out` may not be written.
    """
    out = Path(os.path.abspath(out))
    _check_place(out, inputs)
    _check_free(out, overwrite, marker)


def _check_place(out: Path, inputs: Sequence[Path]) -> None:
    if out.is_symlink() or out.is_mount():
        raise OutputError(f"{out} is a link or a mount point; give a folder of its own")
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent}, which is to hold {out.name}, is not a folder; create it first")
    target = out.resolve()
    for path in inputs:
        source = path.resolve()
        if target == source or source in target.parents or target in source.parents:
            raise OutputError(f"{out} is, contains or lies in the input {path}; give another output")


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


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OutputError(f"{folder} has {free / 1e9:.1f} GB free, but {size / 1e9:.1f} GB are needed; make room")


def _allocated(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*"))


def _put_in_place(new: Path, out: Path, old: Path) -> None:
    for path in (*new.rglob("*"), new):
        sync(path)
    try:
        if out.exists() and any(out.iterdir()):
            os.rename(out, old)
        os.rename(new, out)
    finally:
        _restore(new, out, old)
    sync(out.parent)


def _restore(new: Path, out: Path, old: Path) -> None:
    """Put back what was to be replaced, if what replaces it is not in place."""
    if not old.exists():
        return
    if not out.exists():
        os.rename(old, out)
    elif new.exists():
        raise OutputError(f"{old} was being replaced by a run that was killed, yet there is {out}; move one away")
    else:
        _discard(old)


def _discard(folder: Path) -> None:
    """Delete a folder, if there is one; killed meanwhile, nothing is left under its name."""
    trash = folder.with_name(f"{folder.name}.trash")
    shutil.rmtree(trash, ignore_errors=True)
    if folder.exists():
        os.rename(folder, trash)
        shutil.rmtree(trash, ignore_errors=True)
