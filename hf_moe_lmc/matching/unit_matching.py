"""Matching the units of experts that stand in the same slot (step 2 of arXiv:2509.11348)."""

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank
from hf_moe_lmc.symmetry import Permutation, SignedPermutation

from .assignment import solve_assignment


def unit_similarity(reference: ExpertBank, other: ExpertBank, signs: bool) -> Float[Tensor, "E F F"]:
    """`S[e, i, j] = <unit i of reference expert e, unit j of other expert e>`, the better of both signs if `signs`.

    With x_i all weights of unit i, |x_i - y_j|^2 = |x_i|^2 + |y_j|^2 - 2 S_ij: over permutations the sum of squared
    distances is least where the sum of similarities is greatest. One hidden layer between a fixed input and output
    basis makes this a single exact assignment: A A'^T + B^T B' + u u'^T in the paper's letters. A sign changes only
    the part of up_proj and down_proj, so the best sign gives `<gate, gate'> + |<up, up'> + <down, down'>|`.
    """
    signed = _products(reference.signed_unit_terms(), other.signed_unit_terms())
    unsigned = _products(reference.unsigned_unit_terms(), other.unsigned_unit_terms())
    return unsigned + (signed.abs() if signs else signed)


def match_units(reference: ExpertBank, other: ExpertBank, signs: bool) -> SignedPermutation:
    """For every slot the move of units that brings `other`'s expert closest to `reference`'s, exactly; `[E, F]`.

    Args:
        reference, other: banks of equal sizes.
        signs: whether the sign of a unit is free.
    """
    similarity = unit_similarity(reference, other, signs)
    order = Permutation(torch.stack([solve_assignment(table).permutation.index for table in similarity]))
    if not signs:
        return SignedPermutation.unsigned(order)
    moved = other.permute_units(SignedPermutation.unsigned(order))
    terms = zip(reference.signed_unit_terms(), moved.signed_unit_terms(), strict=True)
    agreement = torch.stack([(a * b).sum(dim=-1) for a, b in terms]).sum(dim=0)
    return SignedPermutation(order, torch.where(agreement < 0, -1, 1).to("cpu", torch.int8))


def _products(reference: list[Tensor], other: list[Tensor]) -> Tensor:
    return sum((a @ b.mT for a, b in zip(reference, other, strict=True)), start=torch.zeros(()))
