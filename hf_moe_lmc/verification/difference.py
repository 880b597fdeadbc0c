"""How far two tensors differ."""

import math

import torch
from torch import Tensor

from hf_moe_lmc.errors import IncompatiblePairError


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """`max |found - expected| / max |expected|`; infinite where one of them is NaN, or infinite alone.

    Raises:
        IncompatiblePairError: the shapes differ.
    """
    if expected.shape != found.shape:
        raise IncompatiblePairError(
            f"outputs have the shapes {tuple(expected.shape)} and {tuple(found.shape)}; give two models of one size"
        )
    worst = torch.where(expected == found, 0.0, found - expected).abs().max().item()
    if worst == 0:
        return 0.0
    ratio = worst / expected[expected.isfinite()].abs().max().item() if math.isfinite(worst) else math.inf
    return ratio
