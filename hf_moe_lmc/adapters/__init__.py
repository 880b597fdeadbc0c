"""Transformers module names <-> MoeLayer."""

from .discovery import moe_layers
from .spec import MoeLayerSpec

__all__ = ["MoeLayerSpec", "moe_layers"]
