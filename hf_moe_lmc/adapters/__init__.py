"""Transformers module names <-> MoeLayer."""

from .discovery import alignable_layers, moe_layers, unaligned_layers
from .inspection import Inspection, LayerInspection, inspect
from .register import register_adapter
from .spec import MoeLayerSpec

__all__ = [
    "Inspection",
    "LayerInspection",
    "MoeLayerSpec",
    "alignable_layers",
    "inspect",
    "moe_layers",
    "register_adapter",
    "unaligned_layers",
]
