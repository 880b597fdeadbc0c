"""Outputs of this package -> the Hub: model cards and pushes."""

from .card import write_card
from .figures import LayerFigures, layer_figures
from .push import check_token, push_alignment, push_folder
from .push_plan import PushPlan, plan_push

__all__ = [
    "LayerFigures",
    "PushPlan",
    "check_token",
    "layer_figures",
    "plan_push",
    "push_alignment",
    "push_folder",
    "write_card",
]
