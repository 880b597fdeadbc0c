"""The processes of one job."""

from datetime import timedelta

import torch
from accelerate import Accelerator, PartialState

LONGEST_WAIT = timedelta(days=7)  # while one process writes, the others wait


def processes() -> PartialState:
    """Those that `accelerate launch` or `torchrun` has started; without either, this one alone."""
    # Unless told so, Accelerate takes a machine without accelerator for a single process.
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)


def accelerator_of_all() -> Accelerator:
    """What evaluates on all of them."""
    processes()
    return Accelerator()
