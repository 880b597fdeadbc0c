"""Two whole models -> an Alignment: one symmetry per Mixture-of-Experts layer; saved, loaded, applied."""

from .align import align, align_opened
from .align_into import align_into
from .align_many import MutualAlignment, align_many
from .alignment import Alignment, apply_symmetries
from .apply import apply
from .config import AlignmentConfig
from .loading import LoadOptions, load_model
from .merge import merge, merge_checkpoints, merge_opened
from .merge_many import merge_many, merge_many_checkpoints
from .opened_model import OpenedModel, open_checkpoint, open_model, open_skeleton
from .pair import check_pair
from .picture import plot_alignment
from .plan import Plan, plan_alignment, plan_writing
from .resources import Resources
from .scramble import scramble
from .stream import OutputOptions

__all__ = [
    "Alignment",
    "AlignmentConfig",
    "LoadOptions",
    "MutualAlignment",
    "OpenedModel",
    "OutputOptions",
    "Plan",
    "Resources",
    "align",
    "align_into",
    "align_many",
    "align_opened",
    "apply",
    "apply_symmetries",
    "check_pair",
    "load_model",
    "merge",
    "merge_checkpoints",
    "merge_many",
    "merge_many_checkpoints",
    "merge_opened",
    "open_checkpoint",
    "open_model",
    "open_skeleton",
    "plan_alignment",
    "plan_writing",
    "plot_alignment",
    "scramble",
]
