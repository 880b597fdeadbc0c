"""The straight line between two sets of weights."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from hf_moe_lmc.errors import IncompatiblePairError


class Interpolation(Mapping[str, Tensor]):
    """`(1 - t) reference + t other` under the reference's names and in its dtypes, each tensor computed when asked for.

    Arithmetic is in float32 or better, on the device of the reference's tensor, and rounds once; t = 0 and t = 1 give
    the endpoints bit for bit. Tensors that are not floating point must be equal.

    Raises:
        IncompatiblePairError: names differ; when asked for a tensor, its shapes or non-float values do.
    """

    def __init__(self, reference: Mapping[str, Tensor], other: Mapping[str, Tensor], t: float):
        if unpaired := sorted(reference.keys() ^ other.keys()):
            owner = "reference" if unpaired[0] in reference else "other"
            raise IncompatiblePairError(f"tensor {unpaired[0]} exists in the {owner} model only")
        self._reference, self._other, self._t = reference, other, t

    def __getitem__(self, name: str) -> Tensor:
        return interpolate_tensor(name, self._reference[name], self._other[name], self._t)

    def __iter__(self) -> Iterator[str]:
        return iter(self._reference)

    def __len__(self) -> int:
        return len(self._reference)


def interpolate(reference: Mapping[str, Tensor], other: Mapping[str, Tensor], t: float) -> Iterator[tuple[str, Tensor]]:
    """The items of `Interpolation(reference, other, t)`, tensor by tensor."""
    yield from Interpolation(reference, other, t).items()


def interpolate_tensor(name: str, a: Tensor, b: Tensor, t: float) -> Tensor:
    """`(1 - t) a + t b` in the dtype of `a`, as `Interpolation` computes it; `name` is for errors."""
    b = b.to(a.device)
    check_alike(name, a, b)
    if not a.is_floating_point():
        return a
    if t in (0, 1):  # an end is itself, whatever the other end holds
        return a if t == 0 else b.to(a.dtype)
    # For 16-bit tensors too, lerp computes in float32 and rounds once.
    dtype = torch.promote_types(a.dtype, b.dtype)
    return torch.lerp(a.to(dtype), b.to(dtype), t).to(a.dtype)


def interpolate_(name: str, a: Tensor, b: Tensor, t: float) -> None:
    """`a <- interpolate_tensor(name, a, b, t)`, in the memory of `a`."""
    if 0 < t < 1 and a.is_floating_point() and a.dtype == b.dtype:
        check_alike(name, a, b)
        a.lerp_(b, t)
    else:
        a.copy_(interpolate_tensor(name, a, b, t))


def check_alike(name: str, a: Tensor, b: Tensor) -> None:
    """Raise `IncompatiblePairError` unless the two can be averaged."""
    if a.shape != b.shape:
        raise IncompatiblePairError(
            f"tensor {name}: shape {tuple(a.shape)} in the reference, {tuple(b.shape)} in the other"
        )
    if not a.is_floating_point() and not torch.equal(a, b):
        raise IncompatiblePairError(f"tensor {name} ({a.dtype}) differs and cannot be interpolated")
