"""Mixture-of-Experts layers of Transformers models: facts of the families; tensors under module names <-> MoeLayer."""

from .discovery import alignable_layers, moe_layers, unaligned_layers
from .families import class_key, register_adapter
from .further import further_layers
from .inspection import Inspection, LayerInspection, experts_per_token, inspect, router_of
from .spec import MoeLayerSpec

__all__ = [
    "Inspection",
    "LayerInspection",
    "MoeLayerSpec",
    "alignable_layers",
    "class_key",
    "experts_per_token",
    "further_layers",
    "inspect",
    "moe_layers",
    "register_adapter",
    "router_of",
    "unaligned_layers",
]
