"""What this package made -> the Hub: model cards and pushes."""

from .card import write_card
from .publish import push_folder
from .push_plan import PushPlan, plan_push

__all__ = ["PushPlan", "plan_push", "push_folder", "write_card"]
