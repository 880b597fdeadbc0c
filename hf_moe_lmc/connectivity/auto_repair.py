"""Choosing repairs: those that together give the lowest loss on data that they were not calibrated on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

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
) -> RepairChoice:
    """Of all subsets of `AUTOMATIC`, in its order, the one with the lowest loss of the midpoint on `held_out`.

    Of equals the smallest; one whose loss is NaN never, and none where that of the plain midpoint is.

    Args:
        weights: of the model that the midpoints are loaded into.
        path_of: repairs -> the path under them.
        held_out: batches that no repair was calibrated on, and that are not evaluated on either.
        accelerator: the processes; all of them evaluate all of `held_out`.
    """

    def loss(repairs: Sequence[Repair]) -> float:
        weights.load(path_of(repairs)(MIDPOINT))
        return evaluate(weights.model, held_out, accelerator).loss

    chains = chain.from_iterable(combinations(AUTOMATIC, number) for number in range(len(AUTOMATIC) + 1))
    losses = {repairs: loss(repairs) for repairs in chains}
    best = min(losses, key=losses.__getitem__)  # the first of equals; no NaN is below the first, none at all
    return RepairChoice(best, {repaired_name("aligned", repairs): found for repairs, found in losses.items()})
