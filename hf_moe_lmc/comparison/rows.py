"""Sums over the rows of two tensors, in blocks that stay in the cache."""

from functools import reduce

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

_BLOCK = 2**16  # entries

ROUNDED_TO = (torch.float8_e5m2, torch.float8_e4m3fn, torch.bfloat16, torch.float16, torch.float32)
"""Dtypes that weights are rounded to, the coarsest first."""


def wide(*tensors: Tensor) -> torch.dtype:
    """The wider of float32 and the dtypes of `tensors`."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def squares(
    a: Shaped[Tensor, "R d"], b: Shaped[Tensor, "R d"]
) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"], Float[Tensor, " R"]]:
    """`(|a_r - b_r|^2, |a_r|^2, |b_r|^2)` of every row, in float32 or better; one pass."""
    dtype, found = wide(a, b), []
    for x, y in _blocks(a, b):
        x, y = x.to(dtype), y.to(dtype)
        found.append(torch.stack([torch.linalg.vector_norm(part, dim=1) for part in (x - y, x, y)]))
    distances, norms, other_norms = torch.cat(found, dim=1).square()
    return distances, norms, other_norms


def column_squares(
    a: Shaped[Tensor, "R d"], b: Shaped[Tensor, "R d"]
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"], Float[Tensor, " d"]]:
    """The same of every column, along which the tensors are not stored."""
    if a.stride(1) > a.stride(0) and b.stride(1) > b.stride(0):
        return squares(a.mT, b.mT)
    dtype = wide(a, b)
    sums = torch.zeros(3, a.shape[1], dtype=dtype)
    for x, y in _blocks(a, b):
        x, y = x.to(dtype, copy=True), y.to(dtype, copy=True)
        for total, part in zip(sums, (x - y, x, y), strict=True):
            total += part.square_().sum(dim=0)  # a norm along this axis takes ten times as long
    return sums[0], sums[1], sums[2]


def is_rounded(a: Tensor, b: Tensor) -> bool:
    """Whether one of two tensors of floating-point numbers is the other rounded to a narrower dtype.

    Every entry differs by no more than that rounding allows, whatever dtype holds it now.
    """
    dtype = wide(a, b)
    for target in ROUNDED_TO:
        if target.itemsize >= dtype.itemsize:
            continue
        limits = torch.finfo(target)
        if all(_is_near(x, y, limits, dtype) for x, y in _blocks(_rows(a), _rows(b))):
            for rounded in (a, b):
                if all(torch.equal(x, x.to(target).to(x.dtype)) for x, _ in _blocks(_rows(rounded), _rows(rounded))):
                    return True
    return False


def _is_near(x: Tensor, y: Tensor, limits: torch.finfo, dtype: torch.dtype) -> bool:
    x, y = x.to(dtype), y.to(dtype)
    return bool(((x - y).abs() <= limits.eps * torch.maximum(x.abs(), y.abs()) + limits.smallest_normal).all())


def _rows(tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if tensor.ndim > 1 else tensor.reshape(1, -1)


def _blocks(a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor]]:
    rows = max(1, _BLOCK // max(1, a.shape[1]))
    return list(zip(a.split(rows), b.split(rows), strict=True))
