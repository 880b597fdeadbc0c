"""One Mixture-of-Experts layer in canonical axes, free of any architecture's storage, and its symmetries."""

from .expert_bank import ExpertBank, UnitScales
from .layer import MoeLayer, act
from .router import Router
from .symmetry_group import SymmetryGroup

__all__ = ["ExpertBank", "MoeLayer", "Router", "SymmetryGroup", "UnitScales", "act"]
