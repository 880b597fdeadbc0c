"""Outputs of this package -> the Hub: model cards and pushes."""

from .card import write_card
from .push import check_push, push_alignment, push_folder
from .push_plan import PushPlan, plan_push

__all__ = [
    "PushPlan",
    "check_push",
    "plan_push",
    "push_alignment",
    "push_folder",
    "write_card",
]
