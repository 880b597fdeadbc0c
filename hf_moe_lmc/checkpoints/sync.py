"""Waiting for the disk."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Return when the content of a file, or the names in a folder, would outlast a loss of power.

    A system that can be told to then forgets what it cached of the file: reading it again is reading the disk, and the
    next write finds free memory, which costs a fraction of the processor time of taking it from others.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):  # macOS has none
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
