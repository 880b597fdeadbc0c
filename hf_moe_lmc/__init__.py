"""hf_moe_lmc: align, merge and evaluate Mixture-of-Experts checkpoints (linear mode connectivity)."""

from .alignment import Alignment, align, merge
from .modeling import MoeGPT2Config, MoeGPT2LMHeadModel, MoeViTConfig, MoeViTForImageClassification

__all__ = [
    "Alignment",
    "MoeGPT2Config",
    "MoeGPT2LMHeadModel",
    "MoeViTConfig",
    "MoeViTForImageClassification",
    "align",
    "merge",
]
