"""Parts of matching on whole layers and banks."""

import math

import torch

from hf_moe_lmc.matching import ExpertMatching, GaugedLayer, layer_distance, match_experts
from hf_moe_lmc.matching.distance import fixed_squared_distance
from hf_moe_lmc.matching.layer_alignment import match_layers
from hf_moe_lmc.matching.unit_matching import match_units, stacked
from hf_moe_lmc.matching.units import Units
from hf_moe_lmc.moe import ExpertBank, MoeLayer
from hf_moe_lmc.names import ExpertOrder
from hf_moe_lmc.symmetry import SignedPermutation


def match_layers_experts(reference: MoeLayer, other: MoeLayer, method: ExpertOrder) -> ExpertMatching:
    """`match_experts` of layers as they are."""
    return match_experts(*GaugedLayer.pair(reference, other), method)


def match_banks(reference: ExpertBank, other: ExpertBank, signs: bool) -> SignedPermutation:
    """For every slot the move of units that brings the other's expert closest to the reference's; no scale is free."""
    pairs = [[units_of(bank, e, signs) for bank in (reference, other)] for e in range(reference.num_experts)]
    return stacked([match_units(*pair) for pair in pairs])


def units_of(bank: ExpertBank, expert: int, signs: bool) -> Units:
    """The units of one expert, whose scales are not free."""
    return Units.of(bank, bank.gauge_scales(0), expert, signs, torch.float64)


def distance_after(reference: MoeLayer, other: MoeLayer, method: ExpertOrder) -> tuple[float, ExpertMatching]:
    """`LayerAlignment.distance_after` without the evidence, which takes longer, and the order of experts."""
    a, b = GaugedLayer.pair(reference, other)
    symmetry, experts, units, shared = match_layers(a, b, method)
    if method == "none":
        return layer_distance(reference, other), experts
    squares = [matching.squared_distance for matching in (*units, *shared)]
    b = b.reorder_unrouted(symmetry.shared_experts, symmetry.zero_experts)
    return math.sqrt(math.fsum([fixed_squared_distance(a, b, experts.order), *squares])), experts
