"""Work that outlasts the death of its process: content forced to the disk, and a journal of it."""

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A file system that knows no way to wait for its disk; Windows, of a file that is open for reading.
NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF}


def sync(path: Path) -> None:
    """Return when the content of a file, or the names in a folder, would outlast a loss of power.

    A system that can be told to then forgets what it cached of the file: reading it again is reading the disk, and the
    next write finds free memory, which costs a fraction of the processor time of taking it from others.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        _wait_for_disk(descriptor)
        if hasattr(os, "posix_fadvise"):  # macOS has none
            with suppress(OSError):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _wait_for_disk(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def copy_folder(source: Path, target: Path, last: Sequence[str]) -> None:
    """Copy the files of a folder; those of the names `last` come last, in this order, once the others are on disk."""
    files = [path for path in source.rglob("*") if path.is_file()]
    for file in sorted(files, key=lambda file: (last.index(file.name) + 1 if file.name in last else 0, file)):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        sync(copy)


@dataclass(frozen=True)
class Journal:
    """A file of JSON lines that says what a run has finished: the recipe of the run, then one line a step.

    Args:
        path: of the file.
        recipe: that its first line holds; None if it holds nothing that can be continued.
        done: step -> its note.
    """

    path: Path
    recipe: Mapping[str, Any] | None = None
    done: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Journal":
        """The journal in a file, or an empty one; a line that was being written when the run was killed is removed."""
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):
            os.truncate(path, sum(map(len, lines[:-1])))
            lines.pop()
        try:
            first, *steps = map(json.loads, lines)
            return cls(path, first["recipe"], {entry["step"]: entry["note"] for entry in steps})
        except (ValueError, KeyError, TypeError):
            return cls(path)

    def of_process(self, number: int) -> "Journal":
        """The journal that a process of a job keeps for itself beside this one; the first keeps this one."""
        if not number:
            return self
        own = Journal.read(self.path.with_stem(f"{self.path.stem}-{number}"))
        return own if own.recipe == self.recipe else own.start(self.recipe or {})

    def with_others(self) -> "Journal":
        """With what all processes of a job have noted in journals of the same recipe."""
        others = map(Journal.read, self._others())
        noted = {step: note for own in others if own.recipe == self.recipe for step, note in own.done.items()}
        return Journal(self.path, self.recipe, self.done | noted)

    def start(self, recipe: Mapping[str, Any]) -> "Journal":
        """An empty journal of another recipe, in the same file; those of other processes are void."""
        for path in self._others():
            path.unlink()
        self.path.unlink(missing_ok=True)
        self._append({"recipe": recipe})
        return Journal(self.path, recipe)

    def record(self, step: str, note: Any) -> None:
        """Note that all of `step` is on the disk."""
        self._append({"step": step, "note": note})
        self.done[step] = note

    def _others(self) -> list[Path]:
        return list(self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}"))

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write(json.dumps(entry).encode() + b"\n")
            _wait_for_disk(file.fileno())
