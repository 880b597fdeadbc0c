"""Weights of two models -> weights of their merge."""

from .interpolation import interpolate
from .output_rescale import rescale_outputs

__all__ = ["interpolate", "rescale_outputs"]
