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


def squares(a: Shaped[Tensor, "R d"], b: Shaped[Tensor, "R d"]) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
    """`(|a_r - b_r|^2, |a_r|^2)` of every row, in float32 or better."""
    dtype, distances, norms = wide(a, b), [], []
    for x, y in _blocks(a, b):
        x, y = x.to(dtype), y.to(dtype)
        norms.append(torch.linalg.vector_norm(x, dim=1))
        distances.append(torch.linalg.vector_norm(x - y, dim=1))
    return torch.cat(distances).square(), torch.cat(norms).square()


def dots(a: Shaped[Tensor, "R d"], b: Shaped[Tensor, "R d"]) -> Float[Tensor, " R"]:
    """`<a_r, b_r>` of every row, in float32 or better."""
    dtype = wide(a, b)
    return torch.cat([(x.to(dtype) * y.to(dtype)).sum(dim=1) for x, y in _blocks(a, b)])


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
