"""The loss along the straight line between two models."""

from .barrier import Barrier
from .evaluation import Evaluation, evaluate
from .path import Path, evaluate_path, linear_path
from .plot import plot_barriers
from .rescale_control import rescaled_path

__all__ = [
    "Barrier",
    "Evaluation",
    "Path",
    "evaluate",
    "evaluate_path",
    "linear_path",
    "plot_barriers",
    "rescaled_path",
]
