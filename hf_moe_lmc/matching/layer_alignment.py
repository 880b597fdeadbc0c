"""Alignment of one layer: experts, then units, then shared experts."""

from dataclasses import dataclass
from functools import reduce

import torch

from hf_moe_lmc.moe import MoeLayer, act
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation, SignedPermutation

from .distance import check_comparable, layer_distance
from .expert_order import ExpertOrder, match_experts
from .unit_matching import match_units


@dataclass(frozen=True)
class LayerAlignment:
    """The symmetry to apply to the other layer, and what it achieves.

    Args:
        symmetry: acts on the other layer.
        distance_before: `layer_distance(reference, other)`.
        distance_after: `layer_distance(reference, act(symmetry, other))`.
    """

    symmetry: MoeSymmetry
    distance_before: float
    distance_after: float


def align_layers(
    reference: MoeLayer,
    other: MoeLayer,
    expert_order: ExpertOrder | Permutation = "gate",
    balance_scales: bool = False,
) -> LayerAlignment:
    """Weight matching of one layer: the symmetry that brings `other` close to `reference`.

    Units are matched exactly given the expert order; with `expert_order="joint"` the result is the exact minimum of
    the squared distance over the whole group of the layer. Computed in float32 or better.
    Source: arXiv:2509.11348, section 5 ("gate", "gram"); "joint" is ours.

    Args:
        reference: stays as it is.
        other: the layer to be rewritten.
        expert_order: a method of `match_experts`, or a given order `[E]`.
        balance_scales: match the layers as `MoeLayer.balanced`, so that free scales do not count. No scale is written,
            and the distances are those of the layers as they are.

    Raises:
        IncompatiblePairError: the layers differ in kind or size.
    """
    check_comparable(reference, other)
    dtypes = (tensor.dtype for layer in (reference, other) for tensor in layer.tensors().values())
    dtype = reduce(torch.promote_types, dtypes, torch.float32)
    reference, other = reference.to(dtype), other.to(dtype)
    before, after = reference, other
    if balance_scales:
        reference, other = reference.balanced(), other.balanced()
    experts = expert_order if isinstance(expert_order, Permutation) else match_experts(reference, other, expert_order)
    shared, other_shared, group = reference.shared_experts, other.shared_experts, reference.group
    symmetry = MoeSymmetry(
        experts,
        SignedPermutation.identity(*reference.symmetry_shape[:2])
        if group.fixed_units
        else match_units(reference.experts, other.experts.permute_experts(experts), group.unit_signs),
        match_units(shared, other_shared, group.shared_unit_signs) if shared and other_shared else None,
    )
    return LayerAlignment(symmetry, layer_distance(before, after), layer_distance(before, act(symmetry, after)))
