"""Where the shared experts of a block lie, and in which layout."""

from torch import Tensor, nn

from hf_moe_lmc.errors import UnsupportedArchitectureError

from .layouts import ExpertLayout, SharedMlp, StackedExperts
from .routers import class_key

NAMES = ("shared_expert", "shared_experts", "shared_mlp")

# Linears of a shared MLP: gate (None, or in one with up), up, down.
LINEARS = (
    ("gate_proj", "up_proj", "down_proj"),
    (None, "up_proj", "down_proj"),
    ("gate_up_proj", "gate_up_proj", "down_proj"),
    ("input_linear", "input_linear", "output_linear"),
)


def shared_experts(block: str, modules: dict[str, nn.Module]) -> ExpertLayout | None:
    """The layout of the shared experts of the block of module name `block`; None without.

    Raises:
        UnsupportedArchitectureError: their layout is not known.
    """
    # Most families keep them inside the block, Granite beside it.
    for owner in (block, block.rpartition(".")[0]):
        for child in NAMES:
            if (name := f"{owner}.{child}") in modules:
                return _layout(name, modules[name])
    return None


def _layout(name: str, mlp: nn.Module) -> ExpertLayout:
    if {"gate_proj", "up_proj", "down_proj"} == dict(mlp.named_parameters(recurse=False)).keys():
        return StackedExperts(name)
    found = {child for child, module in mlp.named_children() if isinstance(getattr(module, "weight", None), Tensor)}
    for gate, up, down in LINEARS:
        if found == {linear for linear in (gate, up, down) if linear}:
            return SharedMlp(name, up, down, gate, getattr(mlp.get_submodule(down), "bias", None) is not None)
    raise UnsupportedArchitectureError(f"shared experts {name}: the layout of {class_key(mlp)} is not known")
