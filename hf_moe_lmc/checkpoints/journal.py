"""What a run has finished, kept on disk for the run that goes on after it was killed."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from hf_moe_lmc.errors import OutputError


@dataclass(frozen=True)
class Journal:
    """A file of JSON lines: the recipe of a run, then one line a finished step. Locked as long as it is open.

    Args:
        file: opened for appending.
        recipe: that its first line holds; None if it holds nothing that can be gone on with.
        done: step -> what was noted with it.
    """

    file: FileIO
    recipe: Mapping[str, Any] | None = None
    done: dict[str, Any] = field(default_factory=dict)

    def start(self, recipe: Mapping[str, Any]) -> "Journal":
        """An empty journal of another recipe, in the same file."""
        self.file.truncate(0)
        self._append({"recipe": recipe})
        return Journal(self.file, recipe)

    def record(self, step: str, note: Any) -> None:
        """Note that all of `step` is on the disk."""
        self._append({"step": step, "note": note})
        self.done[step] = note

    def _append(self, entry: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(entry).encode() + b"\n")
        os.fsync(self.file.fileno())


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """The journal in `path`, which is made if need be together with its folder; its lock ends with the process.

    Raises:
        OutputError: another process has it open, or it cannot be made.
    """
    try:
        path.parent.mkdir(exist_ok=True)
        file = path.open("ab+", buffering=0)
    except OSError as error:
        raise OutputError(f"cannot write to {path.parent.parent}: {error.strerror}; give another output") from None
    with file:
        if not _lock(file, path):
            raise OutputError(f"{path.parent} is in use by another process; wait for it or give another output")
        yield _read(file)


def _lock(file: FileIO, path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A process that finished a moment ago has taken the file away.
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False


def _read(file: FileIO) -> Journal:
    file.seek(0)
    lines = file.readall().splitlines(keepends=True)
    # A line without its end was being written when the run was killed.
    if lines and not lines[-1].endswith(b"\n"):
        file.truncate(sum(map(len, lines[:-1])))
        lines.pop()
    try:
        first, *steps = map(json.loads, lines)
        return Journal(file, first["recipe"], {entry["step"]: entry["note"] for entry in steps})
    except (ValueError, KeyError, TypeError):
        return Journal(file)
