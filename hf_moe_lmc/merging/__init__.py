"""Aligned layers -> their mean, and its repairs."""

from .mean import mean_tensor, widest_dtype
from .repairs import AUTOMATIC, REPAIRS, RepairMethod, needs_data, repaired_bank, repaired_layer, repaired_router
from .statistics import Activation, ExpertStatistics, LayerStatistics, token_weights

__all__ = [
    "AUTOMATIC",
    "REPAIRS",
    "Activation",
    "ExpertStatistics",
    "LayerStatistics",
    "RepairMethod",
    "mean_tensor",
    "needs_data",
    "repaired_bank",
    "repaired_layer",
    "repaired_router",
    "token_weights",
    "widest_dtype",
]
