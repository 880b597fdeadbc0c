"""The known Mixture-of-Experts blocks: one row per block class."""

from dataclasses import dataclass

from hf_moe_lmc.moe import Scoring


@dataclass(frozen=True)
class BlockRow:
    """Names of the parts of a block, and what cannot be read off its tensors.

    Args:
        router: child with `weight` `[E, H]` and perhaps `bias` `[E]`.
        scoring: how the router turns scores into routing weights.
        shared_experts: child with `up_proj`, `down_proj` and perhaps `gate_proj` linears, or None.
    """

    router: str
    scoring: Scoring
    shared_experts: str | None = None


# Keyed by the full class name: a class of the same name elsewhere may route differently.
BLOCKS: dict[str, BlockRow] = {
    "hf_moe_lmc.modeling.moe_block.MoeBlock": BlockRow("router", "softmax", "shared_experts"),
    "transformers.models.mixtral.modeling_mixtral.MixtralSparseMoeBlock": BlockRow("gate", "softmax"),
    # The shared expert's own gate, one row, is no part of any permutation.
    "transformers.models.qwen2_moe.modeling_qwen2_moe.Qwen2MoeSparseMoeBlock": BlockRow(
        "gate", "softmax", "shared_expert"
    ),
}
