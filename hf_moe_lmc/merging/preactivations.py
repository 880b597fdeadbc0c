"""REPAIR: units whose pre-activations vary as much as they do at the ends."""

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank, MoeLayer

from .calibration import ExpertCalibration, LayerCalibration, on_the_line, repair_banks


def repair_preactivations(
    merged: MoeLayer, reference: MoeLayer, other: MoeLayer, t: float, calibration: LayerCalibration
) -> MoeLayer:
    """`merged` with the statistics of every unit's pre-activations on the line between those of the ends.

    With biases, mean and standard deviation, folded into row and bias: `z -> s (z - m_t) + m`, with
    `m = (1 - t) m_0 + t m_1` and s the same of the deviations, divided by that in `merged`. Without, the root mean
    square, by a factor of the row. Rows of gate_proj and of up_proj alike. Source: REPAIR, arXiv:2211.08403.
    """
    return repair_banks(_repaired, merged, reference, other, t, calibration)


def _repaired(merged: ExpertBank, a: ExpertBank, b: ExpertBank, t: float, calibration: ExpertCalibration) -> ExpertBank:
    start, end, found = (_moments(bank, calibration) for bank in (a, b, merged))
    changed: dict[str, Tensor] = {}
    for part, bias in (("gate", merged.gate_bias), ("up", merged.up_bias)):
        if part not in found:
            continue
        if bias is None:
            factor = on_the_line(start[part].size, end[part].size, found[part].size, t)
        else:
            factor = on_the_line(start[part].deviation, end[part].deviation, found[part].deviation, t)
            wanted = torch.lerp(start[part].mean, end[part].mean, t)
            changed[f"{part}_bias"] = factor * (bias - found[part].mean) + wanted
        changed[f"{part}_proj"] = merged.tensors()[f"{part}_proj"] * factor[..., None]
    return replace(merged, **changed)


class _Moments(NamedTuple):
    """Of the pre-activations of every unit: mean and root mean square."""

    mean: Float[Tensor, "E F"]
    size: Float[Tensor, "E F"]

    @property
    def deviation(self) -> Float[Tensor, "E F"]:
        return (self.size.square() - self.mean.square()).clamp(min=0).sqrt()


def _moments(bank: ExpertBank, calibration: ExpertCalibration) -> dict[str, _Moments]:
    """Those of gate and up."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {"gate": [], "up": []}
    for e in range(bank.num_experts):
        weights = calibration.weights_of(bank, e)
        for part, values in zip(found, calibration.before_units(bank, e), strict=True):
            if values is not None:
                found[part].append(((weights * values).sum(dim=0), (weights * values.square()).sum(dim=0).sqrt()))
    return {part: _Moments(*map(torch.stack, zip(*pairs, strict=True))) for part, pairs in found.items() if pairs}
