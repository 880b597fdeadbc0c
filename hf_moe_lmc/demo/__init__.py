"""A small real run from end to end: train, align, merge, measure, report."""

from .recipe import Recipe
from .run import run_demo

__all__ = ["Recipe", "run_demo"]
