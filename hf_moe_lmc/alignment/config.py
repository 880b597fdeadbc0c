"""How to align."""

from dataclasses import dataclass

from hf_moe_lmc.matching import ExpertOrder


@dataclass(frozen=True)
class AlignmentConfig:
    """How one model is aligned to another.

    Args:
        expert_order: how experts are matched; see `hf_moe_lmc.matching.match_experts`.
        balance_scales: whether free scales of units, routers and experts are made alike before matching. They are
            never written, for that would round weights.
    """

    expert_order: ExpertOrder = "auto"
    balance_scales: bool = False

    @classmethod
    def of(cls, config: "AlignmentConfig | ExpertOrder | None") -> "AlignmentConfig":
        """A configuration, or that of an expert order, or the default."""
        if isinstance(config, str):
            return cls(config)
        return config or cls()
