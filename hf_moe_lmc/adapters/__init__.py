"""Transformers module names <-> MoeLayer."""

from .class_key import class_key
from .discovery import alignable_layers, moe_layers, unaligned_layers
from .inspection import Inspection, LayerInspection, inspect
from .packed_layers import packed_layer
from .register import register_adapter
from .spec import MoeLayerSpec
from .top_k import experts_per_token, router_of

__all__ = [
    "Inspection",
    "LayerInspection",
    "MoeLayerSpec",
    "alignable_layers",
    "class_key",
    "experts_per_token",
    "inspect",
    "moe_layers",
    "packed_layer",
    "register_adapter",
    "router_of",
    "unaligned_layers",
]
