"""The algebra: permutations and the symmetry group of one Mixture-of-Experts layer."""

from .moe_symmetry import MoeSymmetry
from .permutation import Permutation
from .signed_permutation import SignedPermutation

__all__ = ["MoeSymmetry", "Permutation", "SignedPermutation"]
