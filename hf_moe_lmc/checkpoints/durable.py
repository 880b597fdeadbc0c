"""Putting files and their names on the disk itself, so that they outlast a loss of power."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Return when the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(file: Path, content: bytes) -> None:
    """Write a small file; folders are made where they lack. It is on the disk when this returns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    sync(file)
    sync(file.parent)
