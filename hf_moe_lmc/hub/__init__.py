"""What this package made -> the Hub: model cards and pushes."""

from .card import write_card
from .layer_figures import LayerFigures, layer_figures
from .publish import check_token, push_alignment, push_config, push_folder
from .push_plan import PushPlan, plan_push

__all__ = [
    "LayerFigures",
    "PushPlan",
    "check_token",
    "layer_figures",
    "plan_push",
    "push_alignment",
    "push_config",
    "push_folder",
    "write_card",
]
