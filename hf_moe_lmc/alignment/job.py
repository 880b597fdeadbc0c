"""The processes of one job, and the memory of this one."""

import ctypes
from datetime import timedelta

import torch
from accelerate import Accelerator, PartialState

LONGEST_WAIT = timedelta(days=7)  # while one process writes, the others wait
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc


def processes() -> PartialState:
    """Return the processes that `accelerate launch` or `torchrun` has started; without either, this one alone."""
    # Unless told so, Accelerate takes a machine without accelerator for a single process.
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)


def accelerator_of_all() -> Accelerator:
    """Return an Accelerator over all processes."""
    processes()
    return Accelerator()


def keep_freed_memory() -> None:
    """Have large blocks of memory reused, where the C library is glibc; nothing elsewhere.

    By default it returns them to the system and asks for fresh ones, which the system must clear: for work that goes
    layer by layer that is a quarter of the processor time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
