"""Detection of the modules that hold routed experts, shared experts and MLPs, and of the layout of each."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_moe_lmc.errors import UnsupportedArchitectureError

from .families import ExpertFacts, class_key, facts_of, holds_nothing
from .layouts import (
    DenseMlp,
    ExpertLayout,
    FlatExperts,
    FusedExperts,
    HeadedMlp,
    ListedExperts,
    ProductKeyExperts,
    StackedExperts,
)
from .quantised import DEQUANTISE, module_tensors, refuse_packed

SHARED = ("shared_expert", "shared_experts", "shared_mlp")

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


@dataclass(frozen=True)
class RoutedExperts:
    """Routed experts of a model.

    Args:
        layout: their layout.
        num_experts: E.
        block: module name of the block that routes to them.
        kept_rows: module name of a tensor -> number of its last rows, which belong to no expert and are never read.
    """

    layout: ExpertLayout
    num_experts: int
    block: str
    kept_rows: dict[str, int] = field(default_factory=dict)


def routed_experts(name: str, module: nn.Module) -> RoutedExperts | None:
    """The routed experts that `module` (module name `name`) holds; None if it holds none.

    Raises:
        UnsupportedArchitectureError: it is called `experts`, but its layout is not known.
    """
    own_name = name.rpartition(".")[2]
    if own_name in SHARED:
        return None
    tensors, facts = dict(module.named_parameters(recurse=False)), facts_of(module).experts or ExpertFacts()
    down_proj = tensors.get("down_proj")
    match facts.layout:
        case "flat":
            size = int(module.moe_num_experts)  # pyrefly: ignore[bad-argument-type]
            return RoutedExperts(FlatExperts(name, size), size, _block(name))
        case "product keys":
            size = int(module.num_keys)  # pyrefly: ignore[bad-argument-type]
            layout = ProductKeyExperts(name, size)
            rows = len(module.get_parameter("down_embed.weight"))
            return RoutedExperts(layout, size, name, _kept(layout.tensor_names, rows - size**2))
        case "linears":
            size = module.get_parameter("input_linear.weight").shape[0]
            layout = FusedExperts(name, "input_linear.weight", "output_linear.weight", facts.gate == "gated")
            return RoutedExperts(layout, size, name)
    if down_proj is not None and down_proj.ndim == 3 and tensors.keys() & {"gate_up_proj", "up_proj"}:
        layout, size = _fused(name, module, tensors), len(down_proj)
        rows = len(tensors[layout.inward])
        return RoutedExperts(layout, size, _block(name), _kept([f"{name}.{layout.inward}"], rows - size))
    if own_name != "experts" or holds_nothing(module):
        return None
    for tensor_name, tensor in tensors.items():
        refuse_packed(f"{name}.{tensor_name}", tensor)
    experts = _listed(name, module)
    return RoutedExperts(experts, len(experts.experts), _block(name))


def _kept(names: Iterable[str], rows: int) -> dict[str, int]:
    return dict.fromkeys(names, rows) if rows > 0 else {}


def _block(name: str) -> str:
    """The module name above `experts`."""
    block, experts, _ = f".{name}".rpartition(".experts")
    if not experts:
        raise UnsupportedArchitectureError(f"experts {name}: expected in a module called experts")
    return block.removeprefix(".")


def _fused(name: str, experts: nn.Module, tensors: dict[str, nn.Parameter]) -> FusedExperts:
    is_gated = "gate_up_proj" in tensors
    inward = "gate_up_proj" if is_gated else "up_proj"
    _, rows, columns = tensors[inward].shape
    plain = (columns, rows // (2 if is_gated else 1))
    return FusedExperts(
        name,
        inward,
        "down_proj",
        is_gated=is_gated,
        has_bias="down_proj_bias" in tensors,
        # Without the flag that Transformers sets, the shapes tell: H, F and 2F cannot fit both ways.
        is_transposed=bool(getattr(experts, "is_transposed", tuple(tensors["down_proj"].shape[1:]) != plain)),
        is_interleaved=is_gated and not getattr(experts, "is_concatenated", True),
    )


def _listed(name: str, module: nn.Module) -> ListedExperts:
    # Beside the experts of a list there may be modules without weights, such as Dropout.
    experts = {child: expert for child, expert in module.named_children() if list(expert.parameters())}
    if not experts or not all(facts_of(expert).mlp for expert in experts.values()):
        kinds = sorted({class_key(expert) for expert in experts.values() if not facts_of(expert).mlp})
        raise UnsupportedArchitectureError(
            f"experts {name}: the layout of {class_key(module)} is not known"
            + (f", nor the MLP {kinds[0]}; see hf_moe_lmc.register_adapter" if kinds else "")
        )
    layouts = [_mlp(f"{name}.{child}", expert) for child, expert in experts.items()]
    return ListedExperts(name, tuple(layout for layout in layouts if isinstance(layout, DenseMlp)))


def shared_experts(block: str, modules: dict[str, nn.Module]) -> ExpertLayout | None:
    """The layout of the shared experts of the block of module name `block`; None without.

    Raises:
        UnsupportedArchitectureError: their layout is not known.
    """
    if facts_of(modules[block]).mlp:  # Doge: the block's own linears
        has_bias = modules[block].get_submodule("down_proj").bias is not None
        return DenseMlp(block, "up_proj", "down_proj", "gate_proj", has_bias)
    # Most families keep them inside the block, Granite beside it.
    for owner in (block, block.rpartition(".")[0]):
        for child in SHARED:
            if (name := f"{owner}.{child}") in modules:
                return _mlp(name, modules[name])
    return None


def dense_mlps(modules: dict[str, nn.Module], taken: set[str]) -> list[ExpertLayout]:
    """The layouts of all MLPs of known class, but those at or below the module names `taken`."""
    return [
        _mlp(name, module) for name, module in modules.items() if facts_of(module).mlp and not _is_below(name, taken)
    ]


def _mlp(name: str, mlp: nn.Module) -> DenseMlp | HeadedMlp | StackedExperts:
    if {"gate_proj", "up_proj", "down_proj"} == dict(mlp.named_parameters(recurse=False)).keys():
        return StackedExperts(name)
    for tensor, _ in module_tensors(mlp, recurse=True):
        linear, _, kind = tensor.rpartition(".")
        if linear and kind not in ("weight", "bias"):
            raise UnsupportedArchitectureError(f"tensor {name}.{tensor} is not known; {DEQUANTISE}")
    linears = {child for child, module in mlp.named_children() if isinstance(getattr(module, "weight", None), Tensor)}
    for gate, up, down in LINEARS:
        if linears == {linear for linear in (gate, up, down) if linear}:
            outward = mlp.get_submodule(down)
            has_bias = getattr(outward, "bias", None) is not None
            layout = DenseMlp(name, up, down, gate, has_bias, is_transposed=isinstance(outward, Conv1D))
            return _with_heads(layout, mlp)
    raise UnsupportedArchitectureError(f"MLP {name}: the layout of {class_key(mlp)} is not known")


def _with_heads(layout: DenseMlp, mlp: nn.Module) -> DenseMlp | HeadedMlp:
    facts = facts_of(mlp).mlp
    if facts is None or not facts.has_heads:
        return layout
    heads = tuple(f"experts.{head}" for head, _ in mlp.get_submodule("experts").named_children())
    return HeadedMlp(layout, heads, mlp.get_parameter("experts.0.weight").shape[0])


def unknown_mlps(modules: dict[str, nn.Module], blocks: set[str], known: set[str]) -> list[str]:
    """Names of modules that stand where other layers have one of `blocks`, and hold nothing of what is `known`."""
    places = {_place(name) for name in blocks}
    return [
        name
        for name, module in modules.items()
        if _place(name) in places and not holds_nothing(module) and not any(_is_below(mlp, {name}) for mlp in known)
    ]


def _is_below(name: str, tops: set[str]) -> bool:
    return any(name == top or name.startswith(f"{top}.") for top in tops)


def _place(name: str) -> str:
    """`model.layers.3.mlp` -> `model.layers.*.mlp`."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
