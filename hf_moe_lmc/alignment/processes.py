"""The processes of one job."""

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """Those that `accelerate launch` or `torchrun` has started; without either, this one alone."""
    # Unless told so, Accelerate takes a machine without accelerator for a single process.
    return PartialState(cpu=not torch.accelerator.is_available())
