"""Units of whole banks, matched slot by slot."""

import torch

from hf_moe_lmc.matching.unit_matching import match_units, stacked
from hf_moe_lmc.matching.units import Units
from hf_moe_lmc.moe import ExpertBank
from hf_moe_lmc.symmetry import SignedPermutation


def match_banks(reference: ExpertBank, other: ExpertBank, signs: bool) -> SignedPermutation:
    """For every slot the move of units that brings the other's expert closest to the reference's."""
    slots = range(reference.num_experts)
    pairs = [[units_of(bank, e, signs) for bank in (reference, other)] for e in slots]
    return stacked([match_units(*pair) for pair in pairs])


def units_of(bank: ExpertBank, expert: int, signs: bool) -> Units:
    """The units of one expert, whose scales are not free."""
    return Units.of(bank, bank.gauge_scales(0), expert, signs, torch.float64)
