"""The straight line between two sets of weights."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from hf_moe_lmc.errors import IncompatiblePairError


def interpolate(reference: Mapping[str, Tensor], other: Mapping[str, Tensor], t: float) -> Iterator[tuple[str, Tensor]]:
    """`(1 - t) reference + t other`, tensor by tensor, under the reference's names and in its dtypes.

    Arithmetic is in float32 or better and rounds once; t = 0 and t = 1 give the endpoints bit for bit. Tensors that
    are not floating point must be equal.

    Raises:
        IncompatiblePairError: names, shapes or non-float values differ.
    """
    if unpaired := sorted(reference.keys() ^ other.keys()):
        owner = "reference" if unpaired[0] in reference else "other"
        raise IncompatiblePairError(f"tensor {unpaired[0]} exists in the {owner} model only")
    for name in reference:
        yield name, interpolate_tensor(name, reference[name], other[name], t)


def interpolate_tensor(name: str, a: Tensor, b: Tensor, t: float) -> Tensor:
    """`(1 - t) a + t b` in the dtype of `a`, as `interpolate` computes it; `name` is for errors."""
    _check_alike(name, a, b)
    if not a.is_floating_point():
        return a
    # For 16-bit tensors too, lerp computes in float32 and rounds once.
    dtype = torch.promote_types(a.dtype, b.dtype)
    return torch.lerp(a.to(dtype), b.to(dtype), t).to(a.dtype)


def interpolate_(name: str, a: Tensor, b: Tensor, t: float) -> None:
    """`a <- interpolate_tensor(name, a, b, t)`, in the memory of `a`."""
    if a.dtype == b.dtype and a.is_floating_point():
        _check_alike(name, a, b)
        a.lerp_(b, t)
    else:
        a.copy_(interpolate_tensor(name, a, b, t))


def _check_alike(name: str, a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise IncompatiblePairError(
            f"tensor {name}: shape {tuple(a.shape)} in the reference, {tuple(b.shape)} in the other"
        )
    if not a.is_floating_point() and not torch.equal(a, b):
        raise IncompatiblePairError(f"tensor {name} ({a.dtype}) differs and cannot be interpolated")
