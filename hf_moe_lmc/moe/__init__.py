"""What the symmetries act on: one Mixture-of-Experts layer in canonical axes, free of any architecture's storage."""

from .action import act
from .expert_bank import ExpertBank
from .layer import MoeLayer
from .router import Router
from .symmetry_group import SymmetryGroup

__all__ = ["ExpertBank", "MoeLayer", "Router", "SymmetryGroup", "act"]
