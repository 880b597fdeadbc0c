"""One Mixture-of-Experts layer in canonical axes, free of any architecture's storage, and its symmetries."""

from .expert_bank import ExpertBank, UnitScales
from .layer import MoeLayer, act
from .router import Router
from .symmetry_group import FurtherRows, SymmetryGroup

__all__ = ["ExpertBank", "FurtherRows", "MoeLayer", "Router", "SymmetryGroup", "UnitScales", "act"]
