"""Weights of two models -> weights of their merge."""

from .average import average
from .interpolation import Interpolation, interpolate, interpolate_, interpolate_tensor
from .layer_interpolation import interpolate_layers, widest_dtype
from .norm_preserving import interpolate_experts, interpolate_router, preserve_norms
from .output_rescale import rescale_outputs

__all__ = [
    "Interpolation",
    "average",
    "interpolate",
    "interpolate_",
    "interpolate_experts",
    "interpolate_layers",
    "interpolate_router",
    "interpolate_tensor",
    "preserve_norms",
    "rescale_outputs",
    "widest_dtype",
]
