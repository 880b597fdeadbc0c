"""Configurations of the Mixture-of-Experts variants of ViT and GPT-2."""

from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import GPT2Config, ViTConfig

from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.names import MoeVariant


@dataclass(kw_only=True)
class MoeFields:
    """What a Mixture-of-Experts variant adds to a dense configuration.

    Args:
        moe_layers: indices of the layers whose FFN is a Mixture of Experts; None means all layers.
        moe_variant: "dense" (every expert answers, softmax over all scores), "sparse" (softmax over the
            `num_experts_per_tok` largest scores) or "shared" (sparse, plus always-active shared experts).
        num_experts: E, routed experts per layer.
        num_experts_per_tok: K, experts that are active for a token; without effect in the dense variant.
        num_shared_experts: shared experts of the shared variant; stored as one MLP of that many expert widths.
        moe_intermediate_size: F, units per expert; None means the width of the dense FFN.
        moe_hidden_act: activation of the experts; the paper's is ReLU.
        output_router_logits: return the router logits and add the load-balancing loss to the loss.
        router_aux_loss_coef: weight of the load-balancing loss (Switch Transformers, equations 4-6).
    """

    moe_layers: list[int] | None = None
    moe_variant: MoeVariant = "sparse"
    num_experts: int = 4
    num_experts_per_tok: int = 2
    num_shared_experts: int = 1
    moe_intermediate_size: int | None = None
    moe_hidden_act: str = "relu"
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.01

    def has_moe(self, layer: int) -> bool:
        """Whether the FFN of layer number `layer` is a Mixture of Experts."""
        return self.moe_layers is None or layer in self.moe_layers

    @property
    def ffn_width(self) -> int:
        """Units of the dense FFN."""
        raise NotImplementedError

    @property
    def expert_width(self) -> int:
        """F, units of one expert."""
        return self.moe_intermediate_size or self.ffn_width

    @property
    def active_experts(self) -> int:
        """How many routed experts a token is sent to."""
        return self.num_experts if self.moe_variant == "dense" else self.num_experts_per_tok

    @property
    def shared_width(self) -> int:
        """Units of all shared experts together; 0 without shared experts."""
        return self.num_shared_experts * self.expert_width if self.moe_variant == "shared" else 0

    def _check_moe(self, num_layers: int) -> None:
        if absent := [layer for layer in self.moe_layers or () if not 0 <= layer < num_layers]:
            raise BadInputError(f"moe_layers names layer {absent[0]}, but the model has layers 0 to {num_layers - 1}")
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise BadInputError(
                f"num_experts_per_tok is {self.num_experts_per_tok}; choose 1 to num_experts = {self.num_experts}"
            )


@strict
class MoeViTConfig(MoeFields, ViTConfig):
    """ViT whose FFNs in `moe_layers` are Mixtures of Experts; fields of `ViTConfig` and `MoeFields`."""

    model_type = "moe_vit"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self._check_moe(self.num_hidden_layers)

    @property
    def ffn_width(self) -> int:
        """Units of the dense FFN."""
        return self.intermediate_size


@strict
class MoeGPT2Config(MoeFields, GPT2Config):
    """GPT-2 whose FFNs in `moe_layers` are Mixtures of Experts; fields of `GPT2Config` and `MoeFields`."""

    model_type = "moe_gpt2"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self._check_moe(self.n_layer)

    @property
    def ffn_width(self) -> int:
        """Units of the dense FFN."""
        return self.n_inner or 4 * self.n_embd
