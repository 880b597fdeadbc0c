"""hf_moe_lmc: align, merge and evaluate Mixture-of-Experts checkpoints (linear mode connectivity)."""

from .adapters import moe_layers
from .alignment import Alignment, align, merge, scramble
from .modeling import MoeGPT2Config, MoeGPT2LMHeadModel, MoeViTConfig, MoeViTForImageClassification

__all__ = [
    "Alignment",
    "MoeGPT2Config",
    "MoeGPT2LMHeadModel",
    "MoeViTConfig",
    "MoeViTForImageClassification",
    "align",
    "merge",
    "moe_layers",
    "scramble",
]
