"""The gauge in which layers are compared, their distance in it, and the check that they can be compared."""

import math
from dataclasses import dataclass, fields, replace
from functools import reduce
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.errors import IncompatiblePairError
from hf_moe_lmc.moe import ExpertBank, MoeLayer, Router, SymmetryGroup, UnitScales
from hf_moe_lmc.symmetry import Permutation
from hf_moe_lmc.workers import each

from .units import Units

_BLOCK = 2**17  # entries


@dataclass(frozen=True)
class GaugedLayer:
    """A layer as it is matched, `MoeLayer.in_gauge`, one expert at a time: no such copy of the whole layer is made.

    Args:
        layer: as it is stored.
        dtype: float32 or better; all is computed in it.
        router: in the gauge.
        scales, shared_scales: see `MoeLayer.gauge_scales`.
    """

    layer: MoeLayer
    dtype: torch.dtype
    router: Router | None
    scales: UnitScales
    shared_scales: UnitScales | None

    @classmethod
    def pair(cls, reference: MoeLayer, other: MoeLayer) -> tuple["GaugedLayer", "GaugedLayer"]:
        """Both layers, in float32 or the widest of their dtypes."""
        dtype = working_dtype(reference, other)
        return cls.of(reference, dtype), cls.of(other, dtype)

    @classmethod
    def of(cls, layer: MoeLayer, dtype: torch.dtype) -> "GaugedLayer":
        """The layer in its gauge."""
        return cls(layer, dtype, _router(layer, dtype), *layer.gauge_scales())

    def units(self, expert: int) -> Units:
        """The units of a routed expert, `[F]`."""
        return Units.of(self.layer.experts, self.scales, expert, self.layer.group.unit_signs, self.dtype)

    def reorder_unrouted(self, shared: Permutation | None, zero: Permutation | None) -> "GaugedLayer":
        """`MoeLayer.reorder_unrouted` in its gauge."""
        stay = all(order is None or order.is_identity for order in (shared, zero))
        return self if stay else GaugedLayer.of(self.layer.reorder_unrouted(shared, zero), self.dtype)

    def shared_units(self) -> list[Units]:
        """The units of every shared expert, `[F']`; empty without such experts."""
        shared, scales, signs = self.layer.shared_experts, self.shared_scales, self.layer.group.shared_unit_signs
        if shared is None or scales is None:
            return []
        return [Units.of(shared, scales, e, signs, self.dtype) for e in range(shared.num_experts)]

    @property
    def further_rows(self) -> Float[Tensor, "R d"] | None:
        """The router's further rows, which have no gauge."""
        rows = self.layer.further_rows
        return rows.rows().to(self.dtype) if rows else None

    @property
    def down_bias(self) -> Float[Tensor, "E D"] | None:
        """down_bias of the routed experts, which belongs to no unit."""
        return _down_bias(self.layer.experts, self.scales)

    @property
    def shared_down_bias(self) -> Float[Tensor, "S D"] | None:
        """down_bias of the shared experts."""
        shared, scales = self.layer.shared_experts, self.shared_scales
        return _down_bias(shared, scales) if shared and scales else None


def layer_distance(reference: MoeLayer, other: MoeLayer) -> float:
    """`sqrt(sum |a - b|^2)` over all tensors of both layers in the gauge (`MoeLayer.in_gauge`).

    The least over router translations, where these are symmetries, and independent of free scales. Computed in float32
    or better, block by block.
    """
    return gauged_distance(*GaugedLayer.pair(reference, other))


def gauged_distance(a: GaugedLayer, b: GaugedLayer) -> float:
    """`layer_distance` of layers whose gauge is known."""
    banks = [(a.layer.experts, a.scales, b.layer.experts, b.scales)]
    if a.layer.shared_experts and b.layer.shared_experts and a.shared_scales and b.shared_scales:
        banks.append((a.layer.shared_experts, a.shared_scales, b.layer.shared_experts, b.shared_scales))
    order = Permutation.identity(a.layer.experts.num_experts)
    return math.sqrt(math.fsum([fixed_squared_distance(a, b, order), *(_units_distance(*bank) for bank in banks)]))


def fixed_squared_distance(reference: GaugedLayer, other: GaugedLayer, experts: Permutation) -> float:
    """Squared distance of all that no unit move changes, under an expert order: router, further rows and down_bias.

    The rest of `layer_distance` squared is that of the units.
    """
    pairs = [(reference.shared_down_bias, other.shared_down_bias), (reference.further_rows, other.further_rows)]
    bias = other.down_bias
    pairs.append((reference.down_bias, None if bias is None else experts.apply(bias, dim=0)))
    if reference.router is not None and other.layer.router is not None:
        # Permuted first, so that equal routers have means equal to the last bit.
        permuted = _router(replace(other.layer, router=other.layer.router.permute_experts(experts)), other.dtype)
        rows = permuted.tensors() if permuted else {}
        pairs += [(tensor, rows[name]) for name, tensor in reference.router.tensors().items()]
    return math.fsum(
        (a - b).square().sum(dtype=torch.float64).item() for a, b in pairs if a is not None and b is not None
    )


def working_dtype(*layers: MoeLayer) -> torch.dtype:
    """The widest of float32 and all dtypes of the layers."""
    return reduce(torch.promote_types, (x.dtype for layer in layers for x in layer.tensors().values()), torch.float32)


def check_comparable(reference: MoeLayer, other: MoeLayer) -> None:
    """Raise `IncompatiblePairError`, naming the difference, unless both layers have the same parts and sizes."""
    if (reference.router is None) != (other.router is None):
        raise IncompatiblePairError("a Mixture of Experts in one of the models, dense in the other")
    sizes = ("experts", "units per expert", "(number, units) of shared experts", "zero experts")
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


def _router(layer: MoeLayer, dtype: torch.dtype) -> Router | None:
    router = layer.router.map(lambda tensor: tensor.to(dtype)) if layer.router else None
    return replace(layer, router=router).router_in_gauge()


def _down_bias(bank: ExpertBank, scales: UnitScales) -> Float[Tensor, "E D"] | None:
    return None if bank.down_bias is None else bank.down_bias * scales.outputs[:, None]


def _units_distance(a: ExpertBank, scales: UnitScales, b: ExpertBank, other_scales: UnitScales) -> float:
    """Squared distance of the units of all experts, paired as they stand."""
    factors, other_factors = (
        {"up_proj": s.up[..., None], "up_bias": s.up[..., None], "down_proj": s.down[:, None]}
        for s in (scales, other_scales)
    )
    dtype = torch.promote_types(scales.up.dtype, other_scales.up.dtype)
    tensors, other_tensors = a.tensors(), b.tensors()

    def squared_distance(part: tuple[str, int]) -> float:
        name, e = part
        x, y = (side[name][e] for side in (tensors, other_tensors))
        x, y = (matrix.reshape(len(matrix), math.prod(matrix.shape[1:])) for matrix in (x, y))
        own, other = (table[name][e] if name in table else None for table in (factors, other_factors))
        return _squared_distance(x, y, own, other, dtype)

    return math.fsum(each(squared_distance, product(tensors.keys() - {"down_bias"}, range(a.num_experts))))


def _squared_distance(
    x: Float[Tensor, "m n"],
    y: Float[Tensor, "m n"],
    factor: Tensor | None,
    other_factor: Tensor | None,
    dtype: torch.dtype,
) -> float:
    """`|factor x - other_factor y|^2`, in blocks of rows that stay in the cache from one operation to the next."""
    size, total = max(1, min(len(x), _BLOCK // max(1, x.shape[1]))), []
    blocks = x.new_empty(2, size, x.shape[1], dtype=dtype)
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        for block, matrix, scale in zip(blocks, (x, y), (factor, other_factor), strict=True):
            block = block[: len(matrix[rows])].copy_(matrix[rows])
            if scale is not None:
                block.mul_(scale if len(scale) == 1 else scale[rows])
        a, b = blocks[:, : len(x[rows])]
        total.append(a.sub_(b).square_().sum(dim=-1).double().sum().item())
    return math.fsum(total)
