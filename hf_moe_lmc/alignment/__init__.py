"""Whole models: opened and checked, aligned, their weights as mappings, written and merged."""

from .alignment import Alignment, MutualAlignment
from .alignment_plot import plot_alignment
from .config import AlignmentConfig
from .job import accelerator_of_all, keep_freed_memory, processes
from .live_weights import LiveWeights, SavedWeights, load_into, temporarily_loaded
from .merge import Alignments, Merge, MergeRepairs, Shares, load_aligned, normalised_shares, shares_at, write_aligned
from .mutual import align_models
from .opened_model import LoadOptions, Model, OpenedModel, Pretrained, load_model, open_model, open_skeleton
from .pair import CheckedModels, check_models, open_models
from .pairwise import align_into, align_pair
from .plan import Plan, plan_alignment, plan_writing
from .prediction import Machine
from .random_rewrite import scramble
from .resources import Resources
from .same_order import in_order
from .weights import ByLayer, Weights, aligned, mean, merged
from .write import Finish, WriteOptions, notes

__all__ = [
    "Alignment",
    "AlignmentConfig",
    "Alignments",
    "ByLayer",
    "CheckedModels",
    "Finish",
    "LiveWeights",
    "LoadOptions",
    "Machine",
    "Merge",
    "MergeRepairs",
    "Model",
    "MutualAlignment",
    "OpenedModel",
    "Plan",
    "Pretrained",
    "Resources",
    "SavedWeights",
    "Shares",
    "Weights",
    "WriteOptions",
    "accelerator_of_all",
    "align_into",
    "align_models",
    "align_pair",
    "aligned",
    "check_models",
    "in_order",
    "keep_freed_memory",
    "load_aligned",
    "load_into",
    "load_model",
    "mean",
    "merged",
    "normalised_shares",
    "notes",
    "open_model",
    "open_models",
    "open_skeleton",
    "plan_alignment",
    "plan_writing",
    "plot_alignment",
    "processes",
    "scramble",
    "shares_at",
    "temporarily_loaded",
    "write_aligned",
]
