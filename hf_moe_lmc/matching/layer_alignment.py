"""Alignment of one layer: experts, then units, then shared experts."""

import math
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import MoeLayer, act
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation

from .distance import check_comparable, fixed_squared_distance, layer_distance, working_dtype
from .expert_order import ExpertMatching, ExpertOrder, match_experts
from .unit_matching import UnitMatching, match_experts_units, match_shared_units, stacked
from .verdict import LayerEvidence, gather_evidence


@dataclass(frozen=True)
class LayerAlignment:
    """The symmetry to apply to the other layer, and its evidence.

    Args:
        symmetry: acts on the other layer.
        distance_before: `layer_distance(reference, other)`.
        distance_after: `layer_distance(reference, act(symmetry, other))`.
        evidence: the figures that the symmetry rests on; None where it was not found by matching, or without units.
        expert_table: `[E, E]`, the fit of every pair of experts, float32; see `ExpertMatching.table`.
    """

    symmetry: MoeSymmetry
    distance_before: float
    distance_after: float
    evidence: LayerEvidence | None = None
    expert_table: Float[Tensor, "E E"] | None = field(default=None, compare=False)


def align_layers(
    reference: MoeLayer,
    other: MoeLayer,
    expert_order: ExpertOrder | Permutation = "auto",
    balance_scales: bool = False,
) -> LayerAlignment:
    """Weight matching of one layer: the symmetry that brings `other` close to `reference`.

    Units are matched exactly given the expert order; with `expert_order="joint"` the result is the exact minimum of
    the squared distance over the whole group of the layer. Computed in float32 or better, one pair of experts at a
    time. Source: arXiv:2509.11348, section 5 ("gate", "gram"); "joint" is ours.

    Args:
        reference: stays as it is.
        other: the layer to be rewritten.
        expert_order: a method of `match_experts`, or a given order `[E]`.
        balance_scales: match the layers as `MoeLayer.balanced`, so that free scales do not count. No scale is written,
            and the distances are those of the layers as they are; the evidence is that of the balanced ones.

    Raises:
        IncompatiblePairError: the layers differ in kind or size.
        UnsupportedArchitectureError: see `match_experts`.
    """
    check_comparable(reference, other)
    if balance_scales:
        dtype = working_dtype(reference, other)
        balanced = align_layers(reference.to(dtype).balanced(), other.to(dtype).balanced(), expert_order)
        before, after = layer_distance(reference, other), layer_distance(reference, act(balanced.symmetry, other))
        return replace(balanced, distance_before=before, distance_after=after)
    symmetry, experts, units, shared = match_layers(reference, other, expert_order)
    fixed = fixed_squared_distance(reference, other, experts.order)
    return LayerAlignment(
        symmetry,
        layer_distance(reference, other),
        math.sqrt(fixed + math.fsum(matching.squared_distance for matching in (*units, *shared))),
        gather_evidence(reference, other, experts, units, shared, fixed) if units else None,
        None if experts.table is None else experts.table.float().cpu(),
    )


def match_layers(
    reference: MoeLayer, other: MoeLayer, expert_order: ExpertOrder | Permutation
) -> tuple[MoeSymmetry, ExpertMatching, list[UnitMatching], list[UnitMatching]]:
    """The symmetry of `align_layers`, and its matchings: of experts, of their units, of the units of shared experts."""
    if isinstance(expert_order, Permutation):
        experts = ExpertMatching(expert_order, "given")
    else:
        experts = match_experts(reference, other, expert_order)
    if not reference.experts.num_units:
        return replace(MoeSymmetry.identity(*reference.symmetry_shape), experts=experts.order), experts, [], []
    keys = experts.order if reference.group.product_keys else None
    units = [
        experts.pairs.get(pair) or match_experts_units(reference, other, *pair, keys)
        for pair in enumerate(experts.order.index.tolist())
    ]
    shared = match_shared_units(reference, other)
    symmetry = MoeSymmetry(experts.order, stacked(units), stacked(shared) if shared else None)
    return symmetry, experts, units, shared
