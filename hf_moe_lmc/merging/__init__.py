"""Weights of two models -> weights of their merge."""

from .interpolation import interpolate, interpolate_, interpolate_tensor
from .output_rescale import rescale_outputs

__all__ = ["interpolate", "interpolate_", "interpolate_tensor", "rescale_outputs"]
