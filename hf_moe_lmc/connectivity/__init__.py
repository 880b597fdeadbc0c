"""The loss along the straight line between two models."""

from .barrier import Barrier
from .calibrate import calibrate
from .curve import Curve, measure
from .evaluation import Evaluation, evaluate
from .live_weights import BorrowedWeights, LiveWeights, borrow
from .path import Path, linear_path
from .path_evaluation import evaluate_path
from .plot import plot_barriers
from .repaired_merge import CalibratedRepairs, calibrate_repairs
from .repairs import repaired_path
from .report import PathReport

__all__ = [
    "Barrier",
    "BorrowedWeights",
    "CalibratedRepairs",
    "Curve",
    "Evaluation",
    "LiveWeights",
    "Path",
    "PathReport",
    "borrow",
    "calibrate",
    "calibrate_repairs",
    "evaluate",
    "evaluate_path",
    "linear_path",
    "measure",
    "plot_barriers",
    "repaired_path",
]
