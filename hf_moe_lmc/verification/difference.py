"""How far two tensors differ."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def relative_difference(expected: Float[Tensor, "*shape"], found: Float[Tensor, "*shape"]) -> float:
    """`max |found - expected| / max |expected|`; infinite where one of them is NaN, or infinite alone."""
    worst = torch.where(expected == found, 0.0, found - expected).abs().max().item()
    if worst == 0:
        return 0.0
    if not math.isfinite(worst):
        return math.inf
    largest = expected[expected.isfinite()].abs().max().item()
    return worst / largest if largest > 0 else math.inf
