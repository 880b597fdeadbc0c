"""How far two tensors differ."""

import torch
from jaxtyping import Float
from torch import Tensor


def row_differences(expected: Float[Tensor, "*rows n"], found: Float[Tensor, "*rows n"]) -> Float[Tensor, " m"]:
    """`max_n |found - expected| / max |expected|` of all m rows; infinite where one is NaN, or infinite alone."""
    worst = torch.where(expected == found, 0.0, found - expected).abs().reshape(-1, expected.shape[-1]).amax(dim=1)
    largest = torch.where(expected.isfinite(), expected, 0.0).abs().max()
    return torch.where(worst == 0, 0.0, torch.where(worst.isfinite(), worst / largest, torch.inf))


def relative_difference(expected: Float[Tensor, "*shape"], found: Float[Tensor, "*shape"]) -> float:
    """`max |found - expected| / max |expected|`; see `row_differences`."""
    return float(row_differences(expected.flatten(), found.flatten()))
