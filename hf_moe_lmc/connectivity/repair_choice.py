"""Repairs of a merge: chosen by their loss on held-out calibration data, and calibrated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from typing import Literal

from accelerate import Accelerator

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.alignment import MergeRepairs, SavedWeights, Shares, Weights, merged
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.merging import AUTOMATIC, LayerStatistics, needs_data
from hf_moe_lmc.names import Repair

from .calibration import CalibrationData, gather_statistics
from .evaluation import evaluate


@dataclass(frozen=True)
class Calibrated:
    """Aligned models whose mean can be repaired at any shares; statistics are gathered once for each.

    Args:
        saved: the weights of the model that lends its place.
        models: the weights of all models, aligned, on its devices.
        specs: the Mixture-of-Experts layers.
        data: the calibration data, on the devices.
        accelerator: the processes; each does the same.
        gauge: whether they are averaged in one gauge; see `hf_moe_lmc.alignment.merged`.
    """

    saved: SavedWeights
    models: Sequence[Weights]
    specs: Sequence[MoeLayerSpec]
    data: CalibrationData
    accelerator: Accelerator
    gauge: bool = False
    _statistics: dict[Shares, Mapping[str, LayerStatistics]] = field(default_factory=dict, init=False, repr=False)

    def weights(self, shares: Shares, repairs: Sequence[Repair] = ()) -> Weights:
        """The mean at some shares under repairs."""
        statistics = self.statistics(shares) if needs_data(repairs) and 1 not in shares else None
        return merged(self.models, shares, self.specs, repairs, statistics, gauge=self.gauge)

    def statistics(self, shares: Shares) -> Mapping[str, LayerStatistics]:
        """Layer name -> its statistics in the mean at some shares."""
        if shares not in self._statistics:
            self._statistics.clear()  # tokens of one point at a time
            statistics = gather_statistics(self.saved, self.weights(shares), self.specs, self.data.fitted)
            self._statistics[shares] = statistics
        return self._statistics[shares]

    def held_out_loss(self, shares: Shares, repairs: Sequence[Repair]) -> float:
        """Loss of the mean under repairs on the held-out calibration data, nats."""
        self.saved.load(self.weights(shares, repairs))
        return evaluate(self.saved.model, self.data.held_out, self.accelerator).loss


@dataclass(frozen=True)
class RepairChoice:
    """The repairs with the lowest loss on held-out calibration data.

    Args:
        repairs: in their order; none where none lowers the loss.
        held_out_loss: every chain that was tried, under its `repaired_name` -> loss on held-out calibration data, nats.
    """

    repairs: tuple[Repair, ...]
    held_out_loss: dict[str, float]


def choose_repairs(calibrated: Calibrated, shares: Shares) -> RepairChoice:
    """Of all subsets of `AUTOMATIC`, in its order, the one with the lowest loss of the mean on held-out data.

    Of equals the smallest; one whose loss is NaN never, and none where that of the plain mean is.
    """
    chains = chain.from_iterable(combinations(AUTOMATIC, number) for number in range(len(AUTOMATIC) + 1))
    losses = {repairs: calibrated.held_out_loss(shares, repairs) for repairs in chains}
    best = min(losses, key=losses.__getitem__)  # the first of equals; no NaN is below the first, none at all
    return RepairChoice(best, {repaired_name("aligned", repairs): loss for repairs, loss in losses.items()})


def calibrate_repairs(
    calibrated: Calibrated, points: Sequence[Shares], repairs: Sequence[Repair] | Literal["auto"]
) -> MergeRepairs:
    """Repairs for a merge at `points`, such that it is the model that a path evaluation on the same data measures.

    Args:
        calibrated: the models and the data.
        points: all shares that will be merged.
        repairs: one after the other; "auto" chooses them, of two models at the midpoint, of several at their shares.

    Raises:
        BadInputError: repairs need data, and there is none.
    """
    data, losses = calibrated.data, None
    if (repairs == "auto" or needs_data(repairs)) and not data.batches:
        raise BadInputError("repairs need calibration data; give two batches or more")
    if repairs == "auto":
        choice = choose_repairs(calibrated, (0.5, 0.5) if len(points[0]) == 2 else points[0])
        repairs, losses = choice.repairs, choice.held_out_loss
    between = [shares for shares in points if 1 not in shares] if needs_data(repairs) else []
    record: dict[str, object] = {"repairs": list(repairs)}
    if data.batches:
        source = {"source": dict(data.source)} if data.source else {}
        tried = {"held_out_loss": losses} if losses else {}
        record["calibration"] = {"data": data.digest} | source | tried
    return MergeRepairs(tuple(repairs), {shares: calibrated.statistics(shares) for shares in between}, record)


def repaired_name(variant: str, repairs: Sequence[Repair]) -> str:
    """`aligned + norms + rescale` and the like."""
    return " + ".join((variant, *repairs))
