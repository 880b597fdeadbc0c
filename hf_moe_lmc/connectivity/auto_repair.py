"""Choosing a repair: one is kept only where it lowers the loss on data that it was not calibrated on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from accelerate import Accelerator
from torch import Tensor

from .arrangements import Repair
from .evaluation import evaluate
from .live_weights import BorrowedWeights
from .path import Path

MIDPOINT = 0.5


@dataclass(frozen=True)
class RepairChoice:
    """The repair of an aligned path that held-out calibration data asks for.

    Args:
        repair: the best one; "none" where none lowers the loss.
        held_out_loss: repair -> loss at the midpoint on held-out calibration data, nats.
    """

    repair: Repair
    held_out_loss: dict[Repair, float]


def choose_repair(
    weights: BorrowedWeights,
    paths: Mapping[Repair, Path],
    held_out: Sequence[Mapping[str, Tensor]],
    accelerator: Accelerator,
) -> RepairChoice:
    """The repair whose midpoint has the lowest loss on `held_out`; ties and NaN go to "none".

    Args:
        weights: of the model that the midpoints are loaded into.
        paths: every repair's path, "none" among them.
        held_out: batches that no repair was calibrated on, and that are not evaluated on either.
        accelerator: the processes; all of them evaluate all of `held_out`.
    """
    losses: dict[Repair, float] = {}
    for repair, path in paths.items():
        weights.load(path(MIDPOINT))
        losses[repair] = evaluate(weights.model, held_out, accelerator).loss
    best: Repair = "none"
    for repair, loss in losses.items():
        if loss < losses[best]:
            best = repair
    return RepairChoice(best, losses)
