"""Transformers module names <-> MoeLayer."""

from .discovery import moe_layers
from .inspection import Inspection, LayerInspection, inspect
from .spec import MoeLayerSpec

__all__ = ["Inspection", "LayerInspection", "MoeLayerSpec", "inspect", "moe_layers"]
