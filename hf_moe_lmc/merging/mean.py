"""The weighted mean of tensors and of layers."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from hf_moe_lmc.errors import IncompatiblePairError
from hf_moe_lmc.moe import ExpertBank, MoeLayer, Router
from hf_moe_lmc.workers import each

_PIECE = 2**18  # entries


def mean_tensor(
    name: str,
    tensors: Sequence[Tensor],
    shares: Sequence[float],
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Tensor:
    """`sum_i s_i x_i` for shares of sum 1; of two tensors the point `t = s_1` of the straight line between them.

    Arithmetic is in float32 or better, as `x_0 + sum_i s_i (x_i - x_0)` (for two `torch.lerp`), and rounds once: where
    all tensors are equal, so is their mean, bit for bit. Tensors that are not floating point must be equal.

    Args:
        name: for errors.
        tensors: one per model, of one shape; moved to the device of the first.
        shares: one per tensor.
        dtype: of the mean if it holds more than that of the first tensor, which it has otherwise.
        overwrite: whether the memory of the first tensor may be taken for the mean.

    Raises:
        IncompatiblePairError: shapes, or values that are not floating point, differ.
    """
    first, *others = tensors
    others = [other.to(first.device) for other in others]
    for other in others:
        _check_alike(name, first, other)
    if not first.is_floating_point() or not others:
        return first
    wanted = torch.promote_types(first.dtype, dtype) if dtype else first.dtype
    wide = reduce(torch.promote_types, (tensor.dtype for tensor in others), wanted)
    if len(others) > 1:  # lerp computes in float32 of itself, and rounds once
        wide = torch.promote_types(wide, torch.float32)
    reused = overwrite and wanted == first.dtype and first.is_contiguous()
    mean = first if reused else torch.empty(first.shape, dtype=wanted, device=first.device)

    def fill(pieces: tuple[Tensor, ...]) -> None:
        target, *values = pieces
        target.copy_(weighted_sum([value.to(wide) for value in values], shares))

    each(fill, zip(*map(_pieces, (mean, first, *others)), strict=True))
    return mean


def mean_bank(banks: Sequence[ExpertBank], shares: Sequence[float]) -> ExpertBank:
    """`mean_tensor` of every tensor of expert banks of one shape, which should be in float32 or better."""
    tensors = [bank.tensors() for bank in banks]
    return ExpertBank(**{name: mean_tensor(name, [own[name] for own in tensors], shares) for name in tensors[0]})


def mean_router(routers: Sequence[Router], shares: Sequence[float]) -> Router:
    """`mean_tensor` of every tensor of routers of one shape, which should be in float32 or better.

    Raises:
        IncompatiblePairError: their tables of experts by token number differ.
    """
    tables = [router.expert_table for router in routers if router.expert_table is not None]
    if tables:
        mean_tensor("expert_table", tables, shares[: len(tables)])
    tensors = [router.tensors() for router in routers]
    mean = {name: mean_tensor(name, [own[name] for own in tensors], shares) for name in tensors[0]}
    return Router(**mean, expert_table=tables[0] if tables else None)


def widest_dtype(*parts: MoeLayer | ExpertBank | Router) -> torch.dtype:
    """The dtype to compute with: the widest of all tensors, at least float32."""
    dtypes = (tensor.dtype for part in parts for tensor in part.tensors().values())
    return reduce(torch.promote_types, dtypes, torch.float32)


def weighted_sum(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """`x_0 + sum_i s_i (x_i - x_0)` of tensors of one dtype, float32 or better; of two by `torch.lerp`."""
    first, *others = values
    if len(others) == 1:
        return torch.lerp(first, others[0], shares[1])
    mean = first.clone()
    for other, share in zip(others, shares[1:], strict=True):
        mean.add_(other - first, alpha=share)
    return mean


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Its entries in pieces: work for several workers, whose intermediate results stay in the cache."""
    return tensor.flatten().split(_PIECE if tensor.device.type == "cpu" else max(tensor.numel(), 1))


def _check_alike(name: str, a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise IncompatiblePairError(
            f"tensor {name}: shape {tuple(a.shape)} in the reference, {tuple(b.shape)} in the other"
        )
    if not a.is_floating_point() and not torch.equal(a, b):
        raise IncompatiblePairError(f"tensor {name} ({a.dtype}) differs and cannot be averaged")
