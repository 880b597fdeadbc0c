"""Alignment of one layer: experts, then units, then shared experts."""

import math
from dataclasses import dataclass

from hf_moe_lmc.moe import MoeLayer
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation

from .distance import check_comparable, fixed_squared_distance, layer_distance, working_dtype
from .evidence import LayerEvidence, gather_evidence
from .expert_order import ExpertMatching, ExpertOrder, match_experts
from .unit_matching import match_pair, stacked
from .units import Units


@dataclass(frozen=True)
class LayerAlignment:
    """The symmetry to apply to the other layer, and what it achieves.

    Args:
        symmetry: acts on the other layer.
        distance_before: `layer_distance(reference, other)`.
        distance_after: `layer_distance(reference, act(symmetry, other))`.
        evidence: what the symmetry rests on; None where it was not found by matching.
    """

    symmetry: MoeSymmetry
    distance_before: float
    distance_after: float
    evidence: LayerEvidence | None = None


def align_layers(
    reference: MoeLayer, other: MoeLayer, expert_order: ExpertOrder | Permutation = "auto"
) -> LayerAlignment:
    """Weight matching of one layer: the symmetry that brings `other` close to `reference`.

    Units are matched exactly given the expert order; with `expert_order="joint"` the result is the exact minimum of
    the squared distance over the whole group of the layer. Computed in float32 or better, one pair of experts at a
    time. Source: arXiv:2509.11348, section 5 ("gate", "gram"); "joint" is ours.

    Args:
        reference: stays as it is.
        other: the layer to be rewritten.
        expert_order: a method of `match_experts`, or a given order `[E]`.

    Raises:
        IncompatiblePairError: the layers differ in kind or size.
    """
    check_comparable(reference, other)
    if isinstance(expert_order, Permutation):
        experts = ExpertMatching(expert_order, "given")
    else:
        experts = match_experts(reference, other, expert_order)
    dtype, group = working_dtype(reference, other), reference.group
    units = [
        experts.pairs.get((i, j))
        or match_pair(
            Units.of(reference.experts, i, group.unit_signs, dtype), Units.of(other.experts, j, group.unit_signs, dtype)
        )
        for i, j in enumerate(experts.order.index.tolist())
    ]
    shared = [
        match_pair(Units.of(a, e, group.shared_unit_signs, dtype), Units.of(b, e, group.shared_unit_signs, dtype))
        for a, b in [(reference.shared_experts, other.shared_experts)]
        if a is not None and b is not None
        for e in range(a.num_experts)
    ]
    symmetry = MoeSymmetry(experts.order, stacked(units), stacked(shared) if shared else None)
    after = fixed_squared_distance(reference, other, experts.order) + sum(
        found.squared_distance for found in (*units, *shared)
    )
    return LayerAlignment(
        symmetry,
        layer_distance(reference, other),
        math.sqrt(after),
        gather_evidence(reference, other, experts, units, shared),
    )
