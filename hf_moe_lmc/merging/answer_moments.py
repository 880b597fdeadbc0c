"""Answer moments: experts whose answers have, in every direction, the size that they have at the ends."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank, MoeLayer

from .calibration import ExpertCalibration, LayerCalibration, repair_banks
from .second_moments import restoring_map, second_moment


def restore_moments(
    merged: MoeLayer, reference: MoeLayer, other: MoeLayer, t: float, calibration: LayerCalibration
) -> MoeLayer:
    """`merged` with the second moment of every expert's answers at `(1 - t) E[f_0 f_0^T] + t E[f_1 f_1^T]`.

    f_0 and f_1 are the answers of the ends; `rescale_outputs` restores the trace of that matrix. All three moments are
    shrunk by `second_moment`, the less the more tokens there are. The `restoring_map` is folded into down_proj and
    down_bias. It sees how the answers spread, not which token got which.
    Costs one eigendecomposition of size H for every expert.
    """
    return repair_banks(_restored, merged, reference, other, t, calibration)


def _restored(merged: ExpertBank, a: ExpertBank, b: ExpertBank, t: float, calibration: ExpertCalibration) -> ExpertBank:
    maps = torch.stack([_map(merged, a, b, t, calibration, e) for e in range(merged.num_experts)])
    bias = merged.down_bias
    return replace(
        merged,
        down_proj=(maps @ merged.down_proj.double()).to(merged.down_proj),
        down_bias=None if bias is None else (maps @ bias.double()[..., None])[..., 0].to(bias),
    )


def _map(
    merged: ExpertBank, a: ExpertBank, b: ExpertBank, t: float, calibration: ExpertCalibration, e: int
) -> Float[Tensor, "D D"]:
    weights = calibration.weights_of(merged, e)
    found, start, end = (second_moment(calibration.answers(bank, e), weights) for bank in (merged, a, b))
    return restoring_map(found, torch.lerp(start, end, t))
