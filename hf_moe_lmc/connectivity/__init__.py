"""Loss and accuracy along the straight line between two models."""

from .barrier import Barrier
from .calibration import CalibrationData, gather_statistics
from .curve import Curve, measure
from .evaluation import Evaluation, evaluate
from .path_evaluation import PathSettings, evaluate_path
from .plot import plot_barriers
from .repair_choice import Calibrated, calibrate_repairs, choose_repairs
from .report import PathReport
from .variants import VARIANTS, WeightPath, linear_path, points_of, variant_weights

__all__ = [
    "VARIANTS",
    "Barrier",
    "Calibrated",
    "CalibrationData",
    "Curve",
    "Evaluation",
    "PathReport",
    "PathSettings",
    "WeightPath",
    "calibrate_repairs",
    "choose_repairs",
    "evaluate",
    "evaluate_path",
    "gather_statistics",
    "linear_path",
    "measure",
    "plot_barriers",
    "points_of",
    "variant_weights",
]
