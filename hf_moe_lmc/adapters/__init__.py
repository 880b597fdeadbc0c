"""Transformers module names <-> MoeLayer."""

from .discovery import find_moe_layers
from .spec import MoeLayerSpec

__all__ = ["MoeLayerSpec", "find_moe_layers"]
