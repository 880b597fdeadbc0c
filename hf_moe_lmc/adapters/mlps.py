"""MLPs of linears: shared experts beside a block, experts listed one by one, and dense layers."""

import re

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_moe_lmc.errors import UnsupportedArchitectureError

from .class_key import class_key
from .gates import MLPS
from .headed_mlp import HeadedMlp
from .layouts import StackedExperts
from .mlp_layouts import DenseMlp
from .refusals import DEQUANTISE, module_tensors

SHARED = ("shared_expert", "shared_experts", "shared_mlp")

# Blocks whose own linears `gate_proj`, `up_proj` and `down_proj` are the shared expert.
SHARED_INSIDE = frozenset({"doge.DogeCDMoE"})

# Linears of an MLP: gate (None, or in one with up), up, down.
LINEARS = (
    ("gate_proj", "up_proj", "down_proj"),
    ("gate_up_proj", "gate_up_proj", "down_proj"),
    ("input_linear", "input_linear", "output_linear"),
    ("w1", "w3", "w2"),
    (None, "up_proj", "down_proj"),
    (None, "c_fc", "c_proj"),
    (None, "fc1", "fc2"),
    (None, "wi", "wo"),
)

# MLPs with an output head for each number that the caller may give; the heads are called experts.
HEADED = frozenset({"vitpose_backbone.VitPoseBackboneMoeMLP"})

# What may stand where other layers have their experts without being an MLP.
MIXERS = frozenset({"nemotron_h.NemotronHAttention", "nemotron_h.NemotronHMamba2Mixer"})


def shared_experts(block: str, modules: dict[str, nn.Module]) -> DenseMlp | StackedExperts | None:
    """The layout of the shared experts of the block of module name `block`; None without.

    Raises:
        UnsupportedArchitectureError: their layout is not known.
    """
    if class_key(modules[block]) in SHARED_INSIDE:
        has_bias = modules[block].get_submodule("down_proj").bias is not None
        return DenseMlp(block, "up_proj", "down_proj", "gate_proj", has_bias)
    # Most families keep them inside the block, Granite beside it.
    for owner in (block, block.rpartition(".")[0]):
        for child in SHARED:
            if (name := f"{owner}.{child}") in modules:
                return mlp_layout(name, modules[name])
    return None


def mlp_layout(name: str, mlp: nn.Module) -> DenseMlp | StackedExperts:
    """How `mlp` (module name `name`) holds its weights.

    Raises:
        UnsupportedArchitectureError: its layout is not known.
    """
    if {"gate_proj", "up_proj", "down_proj"} == dict(mlp.named_parameters(recurse=False)).keys():
        return StackedExperts(name)
    for tensor, _ in module_tensors(mlp, recurse=True):
        linear, _, kind = tensor.rpartition(".")
        if linear and kind not in ("weight", "bias"):
            raise UnsupportedArchitectureError(f"tensor {name}.{tensor} is not known; {DEQUANTISE}")
    found = {child for child, module in mlp.named_children() if isinstance(getattr(module, "weight", None), Tensor)}
    for gate, up, down in LINEARS:
        if found == {linear for linear in (gate, up, down) if linear}:
            outward = mlp.get_submodule(down)
            has_bias = getattr(outward, "bias", None) is not None
            return DenseMlp(name, up, down, gate, has_bias, is_transposed=isinstance(outward, Conv1D))
    raise UnsupportedArchitectureError(f"MLP {name}: the layout of {class_key(mlp)} is not known")


def dense_mlps(modules: dict[str, nn.Module], taken: set[str]) -> list[DenseMlp | HeadedMlp | StackedExperts]:
    """The layouts of all MLPs of known class, but those at or below the module names `taken`."""
    return [
        _with_heads(mlp_layout(name, module), module)
        for name, module in modules.items()
        if class_key(module) in MLPS and not _is_below(name, taken)
    ]


def _with_heads(layout: DenseMlp | StackedExperts, mlp: nn.Module) -> DenseMlp | HeadedMlp | StackedExperts:
    if class_key(mlp) not in HEADED or not isinstance(layout, DenseMlp):
        return layout
    heads = tuple(f"experts.{head}" for head, _ in mlp.get_submodule("experts").named_children())
    return HeadedMlp(layout, heads, mlp.get_parameter("experts.0.weight").shape[0])


def unknown_mlps(modules: dict[str, nn.Module], blocks: set[str], known: set[str]) -> list[str]:
    """Names of modules that stand where other layers have one of `blocks`, and hold nothing of what is `known`."""
    places = {_place(name) for name in blocks}
    return [
        name
        for name, module in modules.items()
        if _place(name) in places
        and class_key(module) not in MIXERS
        and not any(_is_below(found, {name}) for found in known)
    ]


def _is_below(name: str, tops: set[str]) -> bool:
    return any(name == top or name.startswith(f"{top}.") for top in tops)


def _place(name: str) -> str:
    """`model.layers.3.mlp` -> `model.layers.*.mlp`."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
