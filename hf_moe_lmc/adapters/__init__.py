"""Transformers module names <-> MoeLayer."""

from .discovery import alignable_layers, moe_layers, unaligned_layers
from .spec import MoeLayerSpec

__all__ = ["MoeLayerSpec", "alignable_layers", "moe_layers", "unaligned_layers"]
