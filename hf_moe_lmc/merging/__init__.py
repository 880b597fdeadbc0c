"""Weights of two models -> weights of their merge."""

from .interpolation import interpolate, interpolate_tensor
from .output_rescale import rescale_outputs

__all__ = ["interpolate", "interpolate_tensor", "rescale_outputs"]
