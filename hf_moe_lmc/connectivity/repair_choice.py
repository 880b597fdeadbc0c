"""Repairs of a merge: calibrated, and tested on data that they were not calibrated on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from accelerate import Accelerator

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.alignment import MergeRepairs, SavedWeights, Shares, Weights, merged
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.merging import AUTOMATIC, LayerStatistics, needs_data
from hf_moe_lmc.names import Repair

from .calibration import Batch, CalibrationData, gather_statistics
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
        """The mean at some shares under repairs, calibrated on all data."""
        statistics = self.statistics(shares) if needs_data(repairs) and 1 not in shares else None
        return self._merged(shares, repairs, statistics)

    def statistics(self, shares: Shares) -> Mapping[str, LayerStatistics]:
        """Layer name -> its statistics in the mean at some shares, on all data."""
        if shares not in self._statistics:
            self._statistics.clear()  # tokens of one point at a time
            self._statistics[shares] = self._gathered(shares, self.data.batches)
        return self._statistics[shares]

    def held_out_losses(self, shares: Shares, chains: Sequence[tuple[Repair, ...]]) -> list[float]:
        """Loss of the mean under each chain of repairs, calibrated on half of the data, on the other half, nats."""
        statistics, losses = self._gathered(shares, self.data.fitted), []
        for repairs in chains:
            self.saved.load(self._merged(shares, repairs, statistics))
            losses.append(evaluate(self.saved.model, self.data.held_out, self.accelerator).loss)
        return losses

    def _gathered(self, shares: Shares, batches: Sequence[Batch]) -> Mapping[str, LayerStatistics]:
        return gather_statistics(self.saved, self._merged(shares, (), None), self.specs, batches)

    def _merged(
        self, shares: Shares, repairs: Sequence[Repair], statistics: Mapping[str, LayerStatistics] | None
    ) -> Weights:
        return merged(self.models, shares, self.specs, repairs, statistics, gauge=self.gauge)


@dataclass(frozen=True)
class RepairChoice:
    """The outcome of the test of "auto".

    Args:
        repairs: `AUTOMATIC`, or none.
        held_out_loss: of the mean without and with them, under the `repaired_name` -> loss on held-out data, nats.
    """

    repairs: tuple[Repair, ...]
    held_out_loss: dict[str, float]


def choose_repairs(calibrated: Calibrated, shares: Shares, variant: str = "aligned") -> RepairChoice:
    """`AUTOMATIC` if it lowers the loss of the mean on data that it was not calibrated on, else no repair.

    A loss that is NaN is not lower.
    """
    plain, repaired = calibrated.held_out_losses(shares, ((), AUTOMATIC))
    names = (repaired_name(variant, repairs) for repairs in ((), AUTOMATIC))
    return RepairChoice(AUTOMATIC if repaired < plain else (), dict(zip(names, (plain, repaired), strict=True)))


def calibrate_repairs(
    calibrated: Calibrated, points: Sequence[Shares], repairs: Sequence[Repair] | Literal["auto"]
) -> MergeRepairs:
    """Repairs for a merge at `points`, such that it is the model that a path evaluation on the same data measures.

    Args:
        calibrated: the models and the data.
        points: all shares that will be merged.
        repairs: one after the other; "auto": see `choose_repairs`, of two models at the midpoint, of several at their
            shares.

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
        tested = {"held_out_loss": losses} if losses else {}
        record["calibration"] = {"data": data.digest} | source | tested
    return MergeRepairs(tuple(repairs), {shares: calibrated.statistics(shares) for shares in between}, record)


def repaired_name(variant: str, repairs: Sequence[Repair]) -> str:
    """`aligned + norms + rescale` and the like."""
    return " + ".join((variant, *repairs))
