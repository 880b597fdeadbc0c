"""Waiting for the disk."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Return when the content of a file, or the names in a folder, would outlast a loss of power.

    The system is told to forget what it has cached of it: reading it again is reading the disk, and the next write
    finds free memory, which costs a fraction of the processor time of taking it from others.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
