"""What became of every expert, router and tensor of a model in terms of another: in words, as JSON, as a plot."""

from .compare_models import compare, compare_opened
from .comparison import Comparison
from .experts import ExpertComparison
from .layers import LayerComparison
from .plot import plot_comparison
from .tensors import TensorComparison

__all__ = [
    "Comparison",
    "ExpertComparison",
    "LayerComparison",
    "TensorComparison",
    "compare",
    "compare_opened",
    "plot_comparison",
]
