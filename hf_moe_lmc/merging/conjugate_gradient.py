"""Conjugate gradients for least squares whose matrix is only known by what it does."""

from collections.abc import Callable

import torch
from torch import Tensor

ITERATIONS, TOLERANCE = 100, 1e-6


def solve(apply: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """The x with `apply(x) = right`: steps from 0 until the residual is 1e-6 of `right` or 100 steps are done.

    Args:
        apply: linear, symmetric and positive definite on tensors of the shape of `right`.
        right: in float64, which the steps need to stay conjugate.
    """
    found, residual = torch.zeros_like(right), right.clone()
    direction, size = residual.clone(), residual.square().sum()
    enough = TOLERANCE**2 * size
    for _ in range(ITERATIONS):
        if not size > enough:
            break
        image = apply(direction)
        step = size / (direction * image).sum()
        found = found + step * direction
        residual = residual - step * image
        before, size = size, residual.square().sum()
        direction = residual + size / before * direction
    return found
