"""The weighted mean of several models' tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .interpolation import check_alike


def average(name: str, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """`sum_i w_i x_i` in the dtype of `x_0`, for weights whose sum is 1.

    Arithmetic is in float32 or better, as `x_0 + sum_i w_i (x_i - x_0)`, and rounds once: where all are equal, so is
    their mean, bit for bit. Tensors that are not floating point must be equal.

    Args:
        name: for errors.
        tensors: one per model.
        weights: one per model.

    Raises:
        IncompatiblePairError: shapes, or values that are not floating point, differ.
    """
    first, *others = tensors
    for other in others:
        check_alike(name, first, other)
    if not first.is_floating_point():
        return first
    dtype = torch.promote_types(first.dtype, torch.float32)
    for other in others:
        dtype = torch.promote_types(dtype, other.dtype)
    start = first.to(dtype)
    mean = start.clone()
    for other, weight in zip(others, weights[1:], strict=True):
        mean.add_(other.to(start) - start, alpha=weight)
    return mean.to(first.dtype)
