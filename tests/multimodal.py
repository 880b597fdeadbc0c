"""Tiny random models of whole multimodal classes, whose checkpoints are not stored as those of their text models."""

import dataclasses
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from tests import families

EXPERTS = 12

# Folder in transformers.models -> what its class is called before `ForConditionalGeneration`.
CLASSES = {
    "aria": "Aria",
    "deepseek_ocr2": "DeepseekOcr2",
    "dots3_note": "Dots3Note",
    "ernie4_5_vl_moe": "Ernie4_5_VLMoe",
    "gemma4": "Gemma4",
    "glm4v_moe": "Glm4vMoe",
    "glm5_next": "Glm5Next",
    "inkling": "Inkling",
    "inkling2": "Inkling2",
    "llama4": "Llama4",
    "minimax_m3_vl": "MiniMaxM3Sparse",
    "mistral_large4": "MistralLarge4",
    "muse_spark": "MuseSpark",
    "qwen3_5_moe": "Qwen3_5Moe",
    "qwen3_vl_moe": "Qwen3VLMoe",
    "qwen4_exp": "Qwen4Exp",
    "step3p7": "Step3p7",
    "unlimited_ocr": "UnlimitedOcr",
}

# Sizes of the towers beside the text model, by name of the configuration field.
SIZES: dict[str, object] = {
    "depth": 1,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "encoder_layers": 1,
    "num_attention_heads": 4,
    "num_heads": 4,
    "encoder_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "encoder_ffn_dim": 48,
    "mlp_ratio": 1.0,
    "patch_size": 4,
    "image_size": 16,
    "num_position_embeddings": 16,
    "num_mel_bins": 8,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
    "patch_sizes": (4, 2),
    "hidden_sizes": (16, 32),
    "depths": (1, 1),
    "downsample_channels": [16, 32],
}
SIZES |= dict.fromkeys(
    [
        "hidden_size",
        "embed_dim",
        "d_model",
        "downsample_hidden_size",
        "adapter_in_dim",
        "adapter_input_size",
        "adapter_out_dim",
        "output_dim",
        "output_channels",
        "out_hidden_size",
        "text_hidden_size",
        "vision_hidden_size",
        "vision_output_dim",
        "projector_hidden_size",
        "projector_input_dim",
        "projector_output_dim",
    ],
    families.HIDDEN,
)
FIELDS = {"dots3_note": {"vision_config": {"pyramid_num_routed": [-1, EXPERTS]}}}


def supported() -> list[str]:
    """Those of `CLASSES` whose text model the installed Transformers has, and is not refused."""
    return [name for name in CLASSES if name in families.supported()]


def build(name: str) -> PreTrainedModel:
    """The whole model around the family `name`, its weights of order 1."""
    module = import_module(f"transformers.models.{name}.modeling_{name}")
    model_class = getattr(module, f"{CLASSES[name]}ForConditionalGeneration")
    config_class, fields = model_class.config_class, FIELDS.get(name, {})
    parts = {part: _tower(cls) | fields.get(part, {}) for part, cls in config_class.sub_configs.items()}
    parts["text_config"] = families.configuration(name, EXPERTS).to_dict()
    model = model_class(config_class(**families.fields_of(config_class, SIZES) | parts)).eval()
    families.draw_weights(model, EXPERTS)
    return model


@torch.no_grad()
def outputs(model: PreTrainedModel) -> Tensor:
    """The logits of two random texts."""
    tokens = torch.randint(3, families.VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1))
    return model(input_ids=tokens, use_cache=False).logits


def _tower(cls: type[PreTrainedConfig]) -> dict[str, Any]:
    if not dataclasses.is_dataclass(cls):  # any model: a small one
        return {"model_type": "pixtral"} | {key: SIZES[key] for key in PIXTRAL}
    nested = {part: families.fields_of(sub, SIZES) for part, sub in cls.sub_configs.items()}
    return families.fields_of(cls, SIZES) | nested


PIXTRAL = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "image_size", "patch_size")
