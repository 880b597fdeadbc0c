"""Output rescale: experts that answer as much as they do at the ends."""

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank, MoeLayer

from .calibration import ExpertCalibration, LayerCalibration, on_the_line, repair_banks


def rescale_outputs(
    merged: MoeLayer, reference: MoeLayer, other: MoeLayer, t: float, calibration: LayerCalibration
) -> MoeLayer:
    """`merged` with the answer of every expert times `((1 - t) n_0 + t n_1) / n_t`.

    n is the root mean square of the expert's answers to the calibration tokens, at the ends and in `merged`. Averaging
    experts that do not agree shrinks their answers; scaling them back needs no alignment, and is therefore the control
    for any alignment (REPAIR, arXiv:2211.08403).
    """
    return repair_banks(_rescaled, merged, reference, other, t, calibration)


def _rescaled(merged: ExpertBank, a: ExpertBank, b: ExpertBank, t: float, calibration: ExpertCalibration) -> ExpertBank:
    start, end, found = (_sizes(bank, calibration) for bank in (a, b, merged))
    return merged.scale_outputs(on_the_line(start, end, found, t))


def _sizes(bank: ExpertBank, calibration: ExpertCalibration) -> Float[Tensor, " E"]:
    squares = (calibration.weights_of(bank, e) * calibration.answers(bank, e).square() for e in range(bank.num_experts))
    return torch.stack([square.sum() for square in squares]).sqrt()
