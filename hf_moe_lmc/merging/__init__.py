"""Weights of two models -> weights of their merge."""

from .answer_moments import restore_moments
from .average import average
from .calibration import Activation, ExpertCalibration, LayerCalibration, token_weights
from .gram_restoring import restore_gram
from .interpolation import Interpolation, interpolate, interpolate_, interpolate_tensor
from .layer_interpolation import interpolate_layers, widest_dtype
from .norm_preserving import interpolate_experts, interpolate_router, preserve_norms
from .output_rescale import rescale_outputs
from .router_solve import solve_router

__all__ = [
    "Activation",
    "ExpertCalibration",
    "Interpolation",
    "LayerCalibration",
    "average",
    "interpolate",
    "interpolate_",
    "interpolate_experts",
    "interpolate_layers",
    "interpolate_router",
    "interpolate_tensor",
    "preserve_norms",
    "rescale_outputs",
    "restore_gram",
    "restore_moments",
    "solve_router",
    "token_weights",
    "widest_dtype",
]
