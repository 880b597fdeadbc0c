"""Alignment of one layer: experts, then units, then shared experts."""

import math
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import MoeLayer
from hf_moe_lmc.names import ExpertOrder
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation
from hf_moe_lmc.workers import each

from .distance import GaugedLayer, check_comparable, fixed_squared_distance, gauged_distance
from .expert_order import ExpertMatching, match_experts
from .unit_matching import UnitMatching, keep_units, match_units, stacked
from .unrouted import match_shared_experts, match_zero_experts
from .verdict import LayerEvidence, gather_evidence


@dataclass(frozen=True)
class LayerAlignment:
    """The symmetry to apply to the other layer, and its evidence.

    Args:
        symmetry: acts on the other layer.
        distance_before: `layer_distance(reference, other)`.
        distance_after: `layer_distance(reference, act(symmetry, other))`.
        evidence: the figures that the symmetry rests on; None where it was not found by matching.
        expert_table: `[E, E]`, the fit of every pair of experts, float32; see `ExpertMatching.table`.
    """

    symmetry: MoeSymmetry
    distance_before: float
    distance_after: float
    evidence: LayerEvidence | None = None
    expert_table: Float[Tensor, "E E"] | None = field(default=None, compare=False)


def align_layers(
    reference: MoeLayer, other: MoeLayer, expert_order: ExpertOrder | Permutation = "auto"
) -> LayerAlignment:
    """Weight matching of one layer: the symmetry that brings `other` close to `reference`.

    Layers are matched, and their distances measured, in the gauge of `MoeLayer.in_gauge`, so neither free scales nor
    translations count; no scale is written. Units are matched exactly given the expert order; with
    `expert_order="joint"` the result is the exact minimum of the squared distance over the whole group of the layer.
    Computed in float32 or better, one pair of experts at a time. Source: arXiv:2509.11348, section 5 ("gate", "gram");
    "joint" is ours.

    Args:
        reference: stays as it is.
        other: the layer to be rewritten.
        expert_order: a method of `match_experts`, or a given order `[E]`; with "none", units stay too.

    Raises:
        IncompatiblePairError: the layers differ in kind or size.
        UnsupportedArchitectureError: see `match_experts`.
    """
    check_comparable(reference, other)
    a, b = GaugedLayer.pair(reference, other)
    before = gauged_distance(a, b)
    if expert_order == "none":
        return LayerAlignment(MoeSymmetry.identity(*reference.symmetry_shape), before, before)
    symmetry, experts, units, shared = match_layers(a, b, expert_order)
    moved = b.reorder_unrouted(symmetry.shared_experts, symmetry.zero_experts)
    fixed = fixed_squared_distance(a, moved, experts.order)
    return LayerAlignment(
        symmetry,
        before,
        math.sqrt(fixed + math.fsum(matching.squared_distance for matching in (*units, *shared))),
        gather_evidence(a, moved, experts, units, shared, symmetry.shared_experts, fixed) if units else None,
        None if experts.table is None else experts.table.float().cpu(),
    )


def match_layers(
    reference: GaugedLayer, other: GaugedLayer, expert_order: ExpertOrder | Permutation
) -> tuple[MoeSymmetry, ExpertMatching, list[UnitMatching], list[UnitMatching]]:
    """The symmetry of `align_layers`, and its matchings: of experts, of their units, of the units of shared experts."""
    if isinstance(expert_order, Permutation):
        experts = ExpertMatching(expert_order, "given")
    else:
        experts = match_experts(reference, other, expert_order)
    layer = reference.layer
    if expert_order == "none":
        return replace(MoeSymmetry.identity(*layer.symmetry_shape), experts=experts.order), experts, [], []
    units = each(
        lambda pair: experts.pairs.get(pair) or _match_expert(reference, other, *pair, experts.order),
        enumerate(experts.order.index.tolist()),
    )
    keep = expert_order == "units"
    order, shared = match_shared_experts(reference, other, keep)
    zero = match_zero_experts(reference, other, keep)
    symmetry = MoeSymmetry(experts.order, stacked(units), stacked(shared) if shared else None, order, zero)
    return symmetry, experts, units, shared


def _match_expert(reference: GaugedLayer, other: GaugedLayer, i: int, j: int, order: Permutation) -> UnitMatching:
    """Expert i of one layer and j of the other; units without an order of their own stay, or follow product keys."""
    a, b, group = reference.units(i), other.units(j), reference.layer.group
    return match_units(a, b) if group.unit_order else keep_units(a, b, order if group.product_keys else None)
