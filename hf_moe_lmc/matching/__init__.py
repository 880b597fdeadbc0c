"""Two MoeLayers -> the MoeSymmetry that brings the second closest to the first."""

from .assignment import Assignment, certify, solve_assignment, solve_assignments
from .distance import GaugedLayer, layer_distance
from .expert_order import ExpertMatching, match_experts
from .layer_alignment import LayerAlignment, align_layers
from .mutual import MutualMatching, match_mutually
from .null import CERTAIN, NullTest, expert_similarities, matrix_similarity, router_similarities
from .unit_matching import UnitMatching
from .verdict import ExpertEvidence, LayerEvidence, Verdict

__all__ = [
    "CERTAIN",
    "Assignment",
    "ExpertEvidence",
    "ExpertMatching",
    "GaugedLayer",
    "LayerAlignment",
    "LayerEvidence",
    "MutualMatching",
    "NullTest",
    "UnitMatching",
    "Verdict",
    "align_layers",
    "certify",
    "expert_similarities",
    "layer_distance",
    "match_experts",
    "match_mutually",
    "matrix_similarity",
    "router_similarities",
    "solve_assignment",
    "solve_assignments",
]
