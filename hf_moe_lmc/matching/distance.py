"""The distance of two layers, and the check that they can be compared."""

import math
from dataclasses import fields, replace
from functools import reduce

import torch
from torch import Tensor

from hf_moe_lmc.errors import IncompatiblePairError
from hf_moe_lmc.moe import MoeLayer, SymmetryGroup
from hf_moe_lmc.symmetry import Permutation

_BLOCK = 2**16  # entries


def layer_distance(reference: MoeLayer, other: MoeLayer) -> float:
    """`sqrt(sum |a - b|^2)` over all tensors; least over translations where these are symmetries.

    In float32 or better, expert by expert: no such copy of the whole layer is made.
    """
    dtype = working_dtype(reference, other)
    a, b = (gauged(layer, dtype).tensors() for layer in (reference, other))
    pairs = ((x, y) for name in a for x, y in zip(a[name], b[name], strict=True))
    return math.sqrt(math.fsum(_squared_distance(x, y, dtype) for x, y in pairs))


def fixed_squared_distance(reference: MoeLayer, other: MoeLayer, experts: Permutation) -> float:
    """Squared distance of what no unit move changes, under an expert order: router and down_bias.

    The rest of `layer_distance` squared is that of the units.
    """
    dtype = working_dtype(reference, other)
    router = other.router.permute_experts(experts) if other.router else None
    a, b = gauged(reference, dtype), gauged(replace(other, router=router), dtype)
    pairs = [(x, b.router.tensors()[name]) for name, x in a.router.tensors().items()] if a.router and b.router else []
    if a.experts.down_bias is not None and b.experts.down_bias is not None:
        pairs.append((a.experts.down_bias, experts.apply(b.experts.down_bias, dim=0)))
    if a.shared_experts is not None and b.shared_experts is not None:
        shared, other_shared = a.shared_experts.down_bias, b.shared_experts.down_bias
        pairs += [(shared, other_shared)] if shared is not None and other_shared is not None else []
    return math.fsum(_squared_distance(x, y, dtype) for x, y in pairs)


def working_dtype(reference: MoeLayer, other: MoeLayer) -> torch.dtype:
    """The wider of float32 and all dtypes of both layers."""
    dtypes = (tensor.dtype for layer in (reference, other) for tensor in layer.tensors().values())
    return reduce(torch.promote_types, dtypes, torch.float32)


def gauged(layer: MoeLayer, dtype: torch.dtype) -> MoeLayer:
    """`layer.in_gauge()` with its router, which is small, in `dtype`; experts as they are stored."""
    router = layer.router.map(lambda tensor: tensor.to(dtype)) if layer.router else None
    return replace(layer, router=router).in_gauge()


def _squared_distance(a: Tensor, b: Tensor, dtype: torch.dtype) -> float:
    """In blocks of rows that stay in the cache from one operation to the next."""
    a, b = (torch.atleast_1d(tensor) for tensor in (a, b))
    rows = max(1, _BLOCK // max(1, a.shape[1:].numel()))
    blocks = zip(a.split(rows), b.split(rows), strict=True)
    return math.fsum(((x.to(dtype) - y.to(dtype)).square_().sum(dim=-1)).double().sum().item() for x, y in blocks)


def check_comparable(reference: MoeLayer, other: MoeLayer) -> None:
    """Raise `IncompatiblePairError`, naming the difference, unless both layers have the same parts and sizes."""
    if (reference.router is None) != (other.router is None):
        raise IncompatiblePairError("a Mixture of Experts in one of the models, dense in the other")
    sizes = ("experts", "units per expert", "(number, units) of shared experts")
    for what, a, b in zip(sizes, reference.symmetry_shape, other.symmetry_shape, strict=True):
        if a != b:
            raise IncompatiblePairError(f"{what}: the reference has {a or 'none'}, the other has {b or 'none'}")
    for field in fields(SymmetryGroup):
        a, b = getattr(reference.group, field.name), getattr(other.group, field.name)
        if a != b:
            raise IncompatiblePairError(f"symmetry {field.name}: {a} in the reference, {b} in the other")
    shapes_a, shapes_b = (
        {name: tuple(tensor.shape) for name, tensor in layer.tensors().items()} for layer in (reference, other)
    )
    for name in {**shapes_a, **shapes_b}:
        a, b = shapes_a.get(name, "absent"), shapes_b.get(name, "absent")
        if a != b:
            raise IncompatiblePairError(f"{name}: {a} in the reference, {b} in the other")
