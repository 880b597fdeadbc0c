"""How to align."""

from dataclasses import dataclass

from hf_moe_lmc.matching import ExpertOrder


@dataclass(frozen=True)
class AlignmentConfig:
    """How one model is aligned to another.

    Args:
        expert_order: how experts are matched; see `hf_moe_lmc.matching.match_experts`.
    """

    expert_order: ExpertOrder = "gate"
