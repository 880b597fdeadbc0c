"""Output rescale: experts that answer as much as they do at the ends.

At the ends an expert's answers are of sizes (root mean squares over the calibration tokens) n_0 and n_1; where they
disagree, the line of the answers, (1 - t) f_0 + t f_1, is shorter than the line of the sizes. An expert that is scaled
to the line of the sizes answers more than both ends together would; where they disagree much, as experts do whose
random start still shows, that can cost more than it gains.
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
    return repair_banks(_rescaled, merged, reference, other, t, calibration)


def _rescaled(merged: ExpertBank, a: ExpertBank, b: ExpertBank, t: float, calibration: ExpertCalibration) -> ExpertBank:
    start, end, found = (
        torch.stack([_size(calibration.answers(bank, e), merged, e, calibration) for e in range(merged.num_experts)])
        for bank in (a, b, merged)
    )
    return merged.scale_outputs(on_the_line(start, end, found, t))


def _size(answers: Float[Tensor, "N D"], bank: ExpertBank, e: int, calibration: ExpertCalibration) -> Float[Tensor, ""]:
    return (calibration.weights_of(bank, e) * answers.square()).sum().sqrt()
