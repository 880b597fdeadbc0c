"""An output folder that appears complete or not at all.

All is written into a hidden folder beside it: what is new, a journal of it, and for a moment what is replaced. A
killed run goes on where the journal ends; one rename puts the new in its place.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_IMODE, S_IRWXU
from typing import Any

from filelock import SoftFileLock, Timeout

from hf_moe_lmc.errors import MoeLmcError, OutputError

from .durable import Journal, copy_folder, sync
from .output_place import MANIFEST_NAME, OF_A_CHECKPOINT, check_free, check_place, check_renames, check_space

LOCK_SECONDS = 0.5  # enough to find out that the process that holds a lock is dead
NAMELESS_SECONDS = 10  # far more than it takes to write the name of a process into a lock
COPYING_NAME = "copying"  # a file that says that an output is copied to its place
LONGEST_NAME = 190  # bytes; what is beside an output has a longer name, and file systems take 255


@dataclass(frozen=True)
class StagedFolder:
    """A folder under construction.

    Args:
        path: write here.
        scratch: a folder for what is needed on the way, kept until the output is in its place.
        journal: of the steps that are finished, some of them perhaps by a run that was killed.
    """

    path: Path
    scratch: Path
    journal: Journal = field(repr=False)


@contextmanager
def output_folder(
    out: Path,
    recipe: Mapping[str, Any],
    inputs: Sequence[Path],
    size: int,
    overwrite: bool = False,
    marker: str = MANIFEST_NAME,
    files: Sequence[str] = OF_A_CHECKPOINT,
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
        files: patterns of the paths that an earlier output may hold beside its weights; anything else is not lost.

    Raises:
        OutputError: `out` may not be written, or is being written by another process; it is left as it was. Or the
            finished output could not be put in its place; then it is left where it is, and that is said.
    """
    out = Path(os.path.abspath(out))
    check_place(out, inputs)
    work = _work_folder(out)
    new, old, scratch = work / "new", work / "old", work / "scratch"
    recipe = json.loads(json.dumps(recipe))  # as the journal gives it back
    with _locked(out, work):
        try:
            _restore(new, out, old)
            _undo_copy(new, out)
            check_free(out, overwrite, marker, files)
            renames = check_renames(out, work)
            check_space(out.parent, (1 if renames else 2) * size - _allocated(work))
        except OutputError:
            # Refused at the door: work that a killed run has left is kept.
            if not new.is_dir():
                _discard(work)
            raise
        journal = Journal.read(work / "journal.jsonl").with_others()
        if journal.recipe != recipe or not new.is_dir():
            _discard(new)
            _discard(scratch)
            journal = journal.start(recipe)
            _make_like(new, out)
        scratch.mkdir(exist_ok=True)
        try:
            yield StagedFolder(new, scratch, journal)
        except MoeLmcError:
            _discard(work)
            raise
        _tidy(new, S_IMODE(journal.path.stat().st_mode))
        _put_in_place(new, out, old, renames, marker)
        # The output is there: nothing that fails now makes it less.
        with suppress(OSError):
            sync(out.parent)
            _discard(work)


def _work_folder(out: Path) -> Path:
    name = out.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return out.with_name(f".{name}.hf_moe_lmc")


@contextmanager
def _locked(out: Path, work: Path) -> Iterator[None]:
    """Within, the folder `work` exists and is this process's; the lock of a dead process is void."""
    # A file that is there or not, for not every file system knows other locks.
    lock = SoftFileLock(work.with_name(f"{work.name}.lock"), LOCK_SECONDS)
    with ExitStack() as held:
        try:
            _drop_nameless(Path(lock.lock_file))
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


def _drop_nameless(lock: Path) -> None:
    """Delete a lock that names no process, unless one is just about to: its own was killed before it could."""
    with suppress(FileNotFoundError):
        status = lock.stat()
        if not status.st_size and time.time() - status.st_mtime > NAMELESS_SECONDS:
            lock.unlink()


def _allocated(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*"))


def _make_like(new: Path, out: Path) -> None:
    """A new folder with the permissions of the one that it replaces, if there is one."""
    new.mkdir()
    if out.exists():
        status = out.stat()
        with suppress(OSError):  # a group that this user is not in
            os.chown(new, -1, status.st_gid)
        new.chmod(S_IMODE(status.st_mode) | S_IRWXU)


def _tidy(new: Path, mode: int) -> None:
    """Delete the temporary files of writers that were killed, and give all files one mode."""
    for file in [path for path in new.rglob("*") if path.is_file()]:
        if file.name.startswith(".tmp"):  # of safetensors, which also makes files for their owner alone
            file.unlink()
        else:
            file.chmod(mode)


def _put_in_place(new: Path, out: Path, old: Path, renames: bool, marker: str) -> None:
    for path in (*new.rglob("*"), new):
        sync(path)
    try:
        if not renames:
            (new.parent / COPYING_NAME).touch()
            copy_folder(new, out, last=("config.json", marker))
            return
        if out.exists() and any(out.iterdir()):
            os.rename(out, old)
        os.rename(new, out)
    except OSError as error:
        raise OutputError(
            f"the output is complete in {new}, but cannot be moved to {out} ({error.strerror}); move it there, or mend "
            "that and run again"
        ) from None
    finally:
        _restore(new, out, old)


def _undo_copy(new: Path, out: Path) -> None:
    """Delete what a run that was killed had copied to its place."""
    if (new.parent / COPYING_NAME).exists() and new.exists():
        for file in [path for path in new.rglob("*") if path.is_file()]:
            (out / file.relative_to(new)).unlink(missing_ok=True)


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
        try:
            os.rename(folder, trash)
        except OSError:  # a file system without
            trash = folder
        shutil.rmtree(trash, ignore_errors=True)
