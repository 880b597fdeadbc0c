"""Matching the units of experts that stand in the same slot (step 2 of arXiv:2509.11348)."""

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank
from hf_moe_lmc.symmetry import Permutation

from .assignment import solve_assignment


def unit_similarity(reference: ExpertBank, other: ExpertBank) -> Float[Tensor, "E F F"]:
    """`S[e, i, j] = <unit i of reference expert e, unit j of other expert e>`.

    With x_i all weights of unit i, |x_i - y_j|^2 = |x_i|^2 + |y_j|^2 - 2 S_ij: over permutations the sum of squared
    distances is least where the sum of similarities is greatest. One hidden layer between a fixed input and output
    basis makes this a single exact assignment: A A'^T + B^T B' + u u'^T in the paper's letters.
    """
    pairs = zip(reference.unit_terms(), other.unit_terms(), strict=True)
    return sum((a @ b.mT for a, b in pairs), start=torch.zeros(()))


def match_units(reference: ExpertBank, other: ExpertBank) -> Permutation:
    """For every slot the unit permutation that brings `other`'s expert closest to `reference`'s, exactly; `[E, F]`."""
    rows = [solve_assignment(similarity).permutation.index for similarity in unit_similarity(reference, other)]
    return Permutation(torch.stack(rows))
