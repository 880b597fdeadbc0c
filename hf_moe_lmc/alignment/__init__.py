"""Two whole models -> an Alignment: one symmetry per Mixture-of-Experts layer; saved, loaded, applied."""

from .align import align, align_opened
from .alignment import Alignment, apply_symmetries
from .apply import apply
from .config import AlignmentConfig
from .merge import merge, merge_checkpoints
from .opened_model import open_checkpoint, open_skeleton
from .plan import plan_alignment, plan_writing
from .scramble import scramble
from .stream import OutputOptions

__all__ = [
    "Alignment",
    "AlignmentConfig",
    "OutputOptions",
    "align",
    "align_opened",
    "apply",
    "apply_symmetries",
    "merge",
    "merge_checkpoints",
    "open_checkpoint",
    "open_skeleton",
    "plan_alignment",
    "plan_writing",
    "scramble",
]
