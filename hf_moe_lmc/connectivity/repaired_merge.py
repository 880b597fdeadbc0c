"""Repairs for a merge that is kept: the model that a path evaluation measured, as weights to write."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import xxhash
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import PreTrainedModel

from hf_moe_lmc.adapters import MoeLayerSpec, alignable_layers
from hf_moe_lmc.alignment import Alignment
from hf_moe_lmc.checkpoints import tensor_bytes
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.merging import LayerCalibration
from hf_moe_lmc.symmetry import MoeSymmetry

from .auto_repair import choose_repairs
from .calibrate import calibrated_line, halved
from .live_weights import Beside, LiveWeights, borrow
from .path import moved
from .repairs import CALIBRATED, Repair, repaired_path


@dataclass(frozen=True)
class CalibratedRepairs:
    """Repairs and all they need, for some points of one aligned line; a `RepairedLine` for `merge`.

    Args:
        repairs: in their order.
        calibrations: t -> what reaches the layers of the merge at t, by layer name.
        held_out_loss: as of `RepairChoice`; None where nothing was chosen.
        data: digest of the calibration data; None where none was given, since the repairs need none.
        source: where that came from, in words of the command line; empty where that is not known.
    """

    repairs: tuple[Repair, ...]
    calibrations: Mapping[float, Mapping[str, LayerCalibration]] = field(repr=False)
    held_out_loss: Mapping[str, float] | None
    data: str | None
    source: Mapping[str, str | int]

    @property
    def record(self) -> dict[str, Any]:
        """Repairs, held-out losses and data, in JSON values."""
        if self.data is None:
            return {"repairs": list(self.repairs)}
        losses = {} if self.held_out_loss is None else {"held_out_loss": dict(self.held_out_loss)}
        source = {"source": dict(self.source)} if self.source else {}
        return {"repairs": list(self.repairs), "calibration": {"data": self.data} | source | losses}

    def interpolate_(
        self,
        reference: dict[str, Tensor],
        other: Mapping[str, Tensor],
        layers: Sequence[MoeLayerSpec],
        symmetries: Mapping[str, MoeSymmetry],
        t: float,
    ) -> None:
        """`reference <- the repaired point t`, tensor by tensor as `repaired_path` computes it."""
        aligned = moved(other, layers, {spec.name: symmetries[spec.name] for spec in layers})
        point = repaired_path(reference, aligned, layers, self.repairs, lambda t: self.calibrations[t])(t)
        for name, tensor in dict(point).items():
            reference[name].copy_(tensor)


def calibrate_repairs(
    model: PreTrainedModel,
    other: PreTrainedModel | Mapping[str, Tensor],
    alignment: Alignment,
    points: Sequence[float],
    repairs: Sequence[Repair] | Literal["auto"],
    calibration: Iterable[Mapping[str, Tensor]],
    accelerator: Accelerator | None = None,
    source: Mapping[str, str | int] | None = None,
) -> CalibratedRepairs:
    """What `merge` needs to write the repaired model that `evaluate_path` measures on the same calibration data.

    Args:
        model: the reference; lends its place, and has its own weights again afterwards.
        other: a model, or weights under module names, in memory or lazily read.
        alignment: of the two.
        points: every t that will be merged.
        repairs: one after the other; "auto" chooses them as `evaluate_path` does, at the midpoint.
        calibration: batches, as for `evaluate_path`: the first, third, ... calibrate, the others choose. Never those
            that the merge will be judged on. Empty for repairs that need none.
        accelerator: the processes; each does the same.
        source: kept with the answer.

    Raises:
        BadInputError: there are fewer than two batches of calibration data.
    """
    accelerator = accelerator or Accelerator()
    if not hasattr(model, "hf_device_map"):
        model.to(accelerator.device)
    specs, tensors = alignable_layers(model), LiveWeights(other) if isinstance(other, PreTrainedModel) else other
    batches = [send_to_device(batch, accelerator.device) for batch in calibration]
    fitted, held_out = halved(batches)
    needs_data = repairs == "auto" or any(repair in CALIBRATED for repair in repairs)
    if needs_data and not fitted:
        raise BadInputError("repairs need calibration data; give two batches or more")
    losses = None
    with borrow(model) as weights:
        aligned = moved(Beside(tensors, weights), specs, alignment.symmetries)
        reaching = calibrated_line(weights, aligned, specs, fitted)
        if repairs == "auto":
            choice = choose_repairs(
                weights,
                lambda chain: repaired_path(weights, aligned, specs, chain, reaching),
                held_out,
                accelerator,
            )
            repairs, losses = choice.repairs, choice.held_out_loss
        calibrated = any(repair in CALIBRATED for repair in repairs)
        found = {t: reaching(t) if calibrated else {} for t in points if 0 < t < 1}
    return CalibratedRepairs(tuple(repairs), found, losses, _digest(batches) if batches else None, source or {})


def _digest(batches: Sequence[Mapping[str, Tensor]]) -> str:
    """What tells calibration data from other data; XXH3 of 128 bits."""
    digest = xxhash.xxh3_128()
    for batch in batches:
        for name in sorted(batch):
            digest.update(f"{name} {batch[name].dtype} {tuple(batch[name].shape)}\n".encode())
            digest.update(tensor_bytes(batch[name].cpu().contiguous()))
    return digest.hexdigest()
