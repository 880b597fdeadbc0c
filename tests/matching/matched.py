"""Units of whole banks, matched slot by slot."""

import torch

from hf_moe_lmc.matching.unit_matching import match_pair, stacked
from hf_moe_lmc.matching.units import Units
from hf_moe_lmc.moe import ExpertBank
from hf_moe_lmc.symmetry import SignedPermutation


def match_units(reference: ExpertBank, other: ExpertBank, signs: bool) -> SignedPermutation:
    """For every slot the move of units that brings the other's expert closest to the reference's."""
    slots = range(reference.num_experts)
    pairs = [[Units.of(bank, e, signs, torch.float64) for bank in (reference, other)] for e in slots]
    return stacked([match_pair(*pair) for pair in pairs])
