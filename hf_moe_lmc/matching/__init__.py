"""Two MoeLayers -> the MoeSymmetry that brings the second closest to the first."""

from .assignment import Assignment, certify, solve_assignment, solve_assignments
from .distance import layer_distance
from .expert_order import ExpertMatching, ExpertOrder, match_experts
from .layer_alignment import LayerAlignment, align_layers
from .mutual import MutualMatching, match_mutually
from .unit_matching import UnitMatching
from .verdict import LayerEvidence, Verdict, judge, judge_layer

__all__ = [
    "Assignment",
    "ExpertMatching",
    "ExpertOrder",
    "LayerAlignment",
    "LayerEvidence",
    "MutualMatching",
    "UnitMatching",
    "Verdict",
    "align_layers",
    "certify",
    "judge",
    "judge_layer",
    "layer_distance",
    "match_experts",
    "match_mutually",
    "solve_assignment",
    "solve_assignments",
]
