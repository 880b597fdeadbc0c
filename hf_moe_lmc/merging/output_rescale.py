"""Output rescale: experts that answer as much as they do at the ends, each or together.

At the ends the experts answer f_0(x) and f_1(x), of sizes (root mean squares over the calibration tokens) n_0 and n_1.
The line of the answers, (1 - t) f_0 + t f_1, is shorter than the line of the sizes, at the midpoint by
sqrt((1 + c) / 2) for two of equal size and cosine c: as much as the ends disagree. An expert that is scaled to the line
of the sizes answers more than both ends together would; where they disagree much, as experts do whose random start
still shows, that costs more than it gains.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank, MoeLayer

from .calibration import ExpertCalibration, LayerCalibration, on_the_line, repair_banks


def rescale_outputs(
    merged: MoeLayer, reference: MoeLayer, other: MoeLayer, t: float, calibration: LayerCalibration
) -> MoeLayer:
    """`merged` with the answer of every expert times `((1 - t) n_0 + t n_1) / n_t`.

    Averaging experts that do not agree shrinks their answers; scaling them back needs no alignment, and is therefore
    the control for any alignment (REPAIR, arXiv:2211.08403).
    """
    return repair_banks(_to_line_of_sizes, merged, reference, other, t, calibration)


def rescale_to_consensus(
    merged: MoeLayer, reference: MoeLayer, other: MoeLayer, t: float, calibration: LayerCalibration
) -> MoeLayer:
    """`merged` with the answer of every expert times `|(1 - t) f_0 + t f_1| / n_t`: its size were it their mean."""
    return repair_banks(_to_line_of_answers, merged, reference, other, t, calibration)


def _to_line_of_sizes(
    merged: ExpertBank, a: ExpertBank, b: ExpertBank, t: float, calibration: ExpertCalibration
) -> ExpertBank:
    experts = range(merged.num_experts)
    start, end, found = (
        torch.stack([_size(calibration.answers(bank, e), merged, e, calibration) for e in experts])
        for bank in (a, b, merged)
    )
    return merged.scale_outputs(on_the_line(start, end, found, t))


def _to_line_of_answers(
    merged: ExpertBank, a: ExpertBank, b: ExpertBank, t: float, calibration: ExpertCalibration
) -> ExpertBank:
    pairs = [
        (torch.lerp(calibration.answers(a, e), calibration.answers(b, e), t), calibration.answers(merged, e))
        for e in range(merged.num_experts)
    ]
    wanted, found = (
        torch.stack([_size(answers, merged, e, calibration) for e, answers in enumerate(side)])
        for side in zip(*pairs, strict=True)
    )
    return merged.scale_outputs(on_the_line(wanted, wanted, found, t))


def _size(answers: Float[Tensor, "N D"], bank: ExpertBank, e: int, calibration: ExpertCalibration) -> Float[Tensor, ""]:
    return (calibration.weights_of(bank, e) * answers.square()).sum().sqrt()
