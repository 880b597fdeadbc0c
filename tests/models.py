"""Tiny real models of every supported family, with weights of order 1."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel, Qwen2MoeConfig, Qwen2MoeForCausalLM

from hf_moe_lmc.modeling import MoeGPT2Config, MoeGPT2LMHeadModel, MoeViTConfig, MoeViTForImageClassification

VOCABULARY = 31


def moe_vit(variant: str = "sparse", **fields: object) -> PreTrainedModel:
    config = MoeViTConfig(
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=14,
        **(
            {
                "hidden_size": 12,
                "image_size": 8,
                "patch_size": 4,
                "num_channels": 1,
                "num_labels": 5,
                "moe_layers": [0, 2],
                "num_experts": 5,
                "moe_intermediate_size": 7,
                "moe_variant": variant,
            }
            | fields
        ),
    )
    return MoeViTForImageClassification(config)


def moe_gpt2(variant: str = "shared", **fields: object) -> PreTrainedModel:
    config = MoeGPT2Config(
        n_head=2,
        bos_token_id=0,
        eos_token_id=1,
        **(
            {
                "vocab_size": VOCABULARY,
                "n_positions": 16,
                "n_embd": 12,
                "n_layer": 2,
                "moe_layers": [1],
                "num_experts": 5,
                "moe_intermediate_size": 7,
                "moe_variant": variant,
            }
            | fields
        ),
    )
    return MoeGPT2LMHeadModel(config)


def mixtral(**fields: object) -> PreTrainedModel:
    sizes = {
        "hidden_size": 12,
        "intermediate_size": 7,
        "num_hidden_layers": 2,
        "num_local_experts": 5,
        "vocab_size": VOCABULARY,
    }
    return MixtralForCausalLM(MixtralConfig(num_attention_heads=2, num_key_value_heads=1, **(sizes | fields)))


def qwen2_moe() -> PreTrainedModel:
    config = Qwen2MoeConfig(
        hidden_size=12,
        intermediate_size=14,
        moe_intermediate_size=7,
        shared_expert_intermediate_size=9,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_experts=5,
        num_experts_per_tok=2,
        mlp_only_layers=[1],
        vocab_size=VOCABULARY,
    )
    return Qwen2MoeForCausalLM(config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "moe_vit dense": lambda: moe_vit("dense"),
    "moe_vit sparse": lambda: moe_vit("sparse"),
    "moe_vit shared": lambda: moe_vit("shared"),
    "moe_gpt2 sparse": lambda: moe_gpt2("sparse"),
    "moe_gpt2 shared": lambda: moe_gpt2("shared"),
    "mixtral": mixtral,
    "qwen2_moe": qwen2_moe,
}


def build(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """The model `name`, with weights of order 1."""
    return draw_weights(MODELS[name](), seed).to(dtype)


def draw_weights(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Every parameter drawn anew with `seed`: at default init, differences drown in rounding."""
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    model.set_experts_implementation("eager")  # the others reject float64 on a CPU
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


def inputs(model: PreTrainedModel, batch: int = 6) -> dict[str, Tensor]:
    """A random batch for `model`."""
    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(batch, 1, 8, 8, generator=generator, dtype=model.dtype)}
    return {"input_ids": torch.randint(VOCABULARY, (batch, 9), generator=generator)}


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    """Logits of `model` on its random batch."""
    return model(**inputs(model)).logits
