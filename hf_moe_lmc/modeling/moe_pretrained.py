"""What the Mixture-of-Experts models of this package share."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from hf_moe_lmc.errors import BadInputError

from .moe_block import MoeConfig, MoeExperts, MoeRouter, MoeSharedExperts

Model = TypeVar("Model", bound=PreTrainedModel)

# Scores start near zero, so that every expert sees tokens before the router has learned anything.
ROUTER_STD = 0.02


class MoePreTrainedModel(PreTrainedModel):
    """A dense architecture some of whose FFNs are Mixtures of Experts; stands before it among the base classes."""

    @classmethod
    def from_dense(
        cls: type[Model], dense_model: PreTrainedModel, layers: list[int] | None = None, **config_fields: Any
    ) -> Model:
        """A copy of `dense_model` whose FFNs in `layers` are freshly initialised Mixtures of Experts.

        Everything outside these FFNs is equal bit for bit; the experts are drawn from torch's global generator.

        Args:
            dense_model: the pretrained model, of the class that this class extends.
            layers: indices of the layers to replace; None replaces all.
            config_fields: further fields of this class's configuration, such as `num_experts` and `moe_variant`.

        Raises:
            BadInputError: `dense_model` is of another class, or a field cannot be used.
        """
        if type(dense_model) not in cls.__mro__:
            raise BadInputError(f"{cls.__name__}.from_dense cannot start from a {type(dense_model).__name__}")
        fields = dense_model.config.to_dict()
        for identity in ("model_type", "architectures", "transformers_version"):
            fields.pop(identity, None)
        assert cls.config_class is not None
        model = cls(cls.config_class(**(fields | {"moe_layers": layers} | config_fields)))
        keys = model.load_state_dict(dense_model.state_dict(), strict=False)
        replaced = [f".{i}.mlp." for i in range(model.config.num_hidden_layers) if model.config.has_moe(i)]
        strangers = [key for key in (*keys.missing_keys, *keys.unexpected_keys) if not any(r in key for r in replaced)]
        if strangers:
            raise BadInputError(f"{type(dense_model).__name__} and {cls.__name__} disagree on tensor {strangers[0]}")
        model.to(device=dense_model.device, dtype=dense_model.dtype)  # pyrefly: ignore[missing-argument]
        return model

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # the inherited check looks for the decorator in a model's own file; ours stands in moe_block.py

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # Transformers skips modules without tensors of their own in code outside its package, for fear that their
        # parents' initialisation ignores the marks of loaded tensors. Ours, through `init`, heeds them.
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Experts N(0, 1 / fan_in), routers N(0, ROUTER_STD^2), biases 0; the rest as the dense architecture does."""
        super()._init_weights(module)
        if isinstance(module, MoeRouter):
            init.normal_(module.weight, std=ROUTER_STD)
            init.zeros_(module.bias)
        elif isinstance(module, MoeExperts):
            for weight, bias in ((module.up_proj, module.up_proj_bias), (module.down_proj, module.down_proj_bias)):
                init.normal_(weight, std=weight.shape[-1] ** -0.5)
                init.zeros_(bias)
        elif isinstance(module, MoeSharedExperts):
            for linear in (module.up_proj, module.down_proj):
                init.normal_(linear.weight, std=linear.in_features**-0.5)


def load_balancing_loss(
    config: MoeConfig, router_logits: tuple[Tensor, ...] | None, attention_mask: Tensor | None = None
) -> Tensor | None:
    """E times the sum over experts of (share of tokens) x (mean routing probability), over all layers.

    None without router logits. Source: Switch Transformers, arXiv:2101.03961, equations 4-6.
    """
    if not router_logits:
        return None
    return torch.as_tensor(
        load_balancing_loss_func(
            router_logits,  # pyrefly: ignore[bad-argument-type]  # annotated as a 1-tuple, takes any length
            config.num_experts,
            config.active_experts,
            attention_mask,
        )
    )
