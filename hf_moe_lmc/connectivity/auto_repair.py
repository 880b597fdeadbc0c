"""Choosing repairs: one is kept only where it lowers the loss on data that it was not calibrated on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from accelerate import Accelerator
from torch import Tensor

from .evaluation import evaluate
from .live_weights import BorrowedWeights
from .path import Path
from .repairs import AUTOMATIC, Repair, repaired_name

MIDPOINT = 0.5


@dataclass(frozen=True)
class RepairChoice:
    """The repairs of an aligned path that held-out calibration data asks for.

    Args:
        repairs: those kept, in their order; none where none lowers the loss.
        held_out_loss: all that was tried, under the names of `repaired_name` -> loss at the midpoint on held-out
            calibration data, nats.
    """

    repairs: tuple[Repair, ...]
    held_out_loss: dict[str, float]


def choose_repairs(
    weights: BorrowedWeights,
    path_of: Callable[[Sequence[Repair]], Path],
    held_out: Sequence[Mapping[str, Tensor]],
    accelerator: Accelerator,
    candidates: Sequence[Repair] = AUTOMATIC,
) -> RepairChoice:
    """Adds, again and again, the repair that lowers the midpoint's loss on `held_out` most, until none does.

    Args:
        weights: of the model that the midpoints are loaded into.
        path_of: repairs -> the path under them.
        held_out: batches that no repair was calibrated on, and that are not evaluated on either.
        accelerator: the processes; all of them evaluate all of `held_out`.
        candidates: the repairs to choose from.
    """
    losses: dict[str, float] = {}

    def loss(repairs: tuple[Repair, ...]) -> float:
        weights.load(path_of(repairs)(MIDPOINT))
        found = losses[repaired_name("aligned", repairs)] = evaluate(weights.model, held_out, accelerator).loss
        return found

    kept: tuple[Repair, ...] = ()
    lowest = loss(kept)
    while True:
        tried = {(*kept, repair): loss((*kept, repair)) for repair in candidates if repair not in kept}
        lower = {repairs: found for repairs, found in tried.items() if found < lowest}  # no NaN is
        if not lower:
            return RepairChoice(kept, losses)
        kept = min(lower, key=lambda repairs: lower[repairs])
        lowest = lower[kept]
