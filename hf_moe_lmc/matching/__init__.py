"""Two MoeLayers -> the MoeSymmetry that brings the second closest to the first."""

from .assignment import Assignment, solve_assignment
from .certificate import certify
from .distance import layer_distance
from .evidence import LayerEvidence
from .expert_order import ExpertMatching, ExpertOrder, match_experts
from .layer_alignment import LayerAlignment, align_layers
from .unit_matching import match_units, unit_similarity

__all__ = [
    "Assignment",
    "ExpertMatching",
    "ExpertOrder",
    "LayerAlignment",
    "LayerEvidence",
    "align_layers",
    "certify",
    "layer_distance",
    "match_experts",
    "match_units",
    "solve_assignment",
    "unit_similarity",
]
