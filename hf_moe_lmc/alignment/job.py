"""The processes of one job, and the memory of this one."""

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch.distributed import is_torchelastic_launched
from torch.distributed.distributed_c10d import _set_pg_timeout

from .opened_model import OpenedModel

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=7)  # while one process writes, the others wait
MEETING = timedelta(seconds=45)  # for one that is killed before all have met is missed by nobody but a launcher
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc


def processes() -> PartialState:
    """Return the processes that `accelerate launch` or `torchrun` has started; without either, this one alone.

    The first call waits for all of them.
    """
    wait = LONGEST_WAIT if is_torchelastic_launched() else MEETING
    # Unless told so, Accelerate takes a machine without accelerator for a single process.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=wait)
    if torch.distributed.is_initialized() and state.backend in ("gloo", "nccl"):
        _set_pg_timeout(LONGEST_WAIT)
    return state


@dataclass(frozen=True)
class Team:
    """The processes that do one piece of work together; all of them must call its methods.

    Args:
        index: number of this process.
        size: number of processes.
    """

    index: int
    size: int

    @classmethod
    def of(cls, models: Iterable[OpenedModel]) -> "Team":
        """All processes of the job, or this one alone where a model is live: it may exist in one process only."""
        state = processes()
        together = all(model.checkpoint for model in models)
        return cls(state.process_index, state.num_processes) if together else cls(0, 1)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of `items`."""
        return items[self.index :: self.size]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their numbers."""
        return gather_object([value]) if self.size > 1 else [value]

    def broadcast(self, value: T) -> T:
        """The value of the first process."""
        return broadcast_object_list([value])[0] if self.size > 1 else value


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
