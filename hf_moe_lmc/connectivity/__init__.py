"""The loss along the straight line between two models."""

from .barrier import Barrier
from .curve import Curve, measure
from .evaluation import Evaluation, evaluate
from .live_weights import BorrowedWeights, LiveWeights, borrow
from .path import Path, linear_path, norm_preserving_path
from .path_evaluation import evaluate_path
from .plot import plot_barriers
from .report import PathReport
from .rescale_control import rescaled_path

__all__ = [
    "Barrier",
    "BorrowedWeights",
    "Curve",
    "Evaluation",
    "LiveWeights",
    "Path",
    "PathReport",
    "borrow",
    "evaluate",
    "evaluate_path",
    "linear_path",
    "measure",
    "norm_preserving_path",
    "plot_barriers",
    "rescaled_path",
]
