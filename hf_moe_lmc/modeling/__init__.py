"""The paper's Mixture-of-Experts variants of ViT and GPT-2, registered with the Transformers Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification

from .configuration import MoeGPT2Config, MoeVariant, MoeViTConfig
from .moe_gpt2 import MoeGPT2LMHeadModel
from .moe_vit import MoeViTForImageClassification

AutoConfig.register(MoeViTConfig.model_type, MoeViTConfig)
AutoConfig.register(MoeGPT2Config.model_type, MoeGPT2Config)
AutoModelForImageClassification.register(MoeViTConfig, MoeViTForImageClassification)
AutoModelForCausalLM.register(MoeGPT2Config, MoeGPT2LMHeadModel)

__all__ = ["MoeGPT2Config", "MoeGPT2LMHeadModel", "MoeVariant", "MoeViTConfig", "MoeViTForImageClassification"]
