"""Which modules hold routed experts, and in which layout."""

from typing import NamedTuple

from torch import nn

from hf_moe_lmc.errors import UnsupportedArchitectureError

from .class_key import class_key
from .gates import MLPS
from .layouts import ExpertLayout, FlatExperts, FusedExperts, ParallelExperts
from .mlp_layouts import DenseMlp, ListedExperts
from .mlps import mlp_layout
from .product_key_experts import ProductKeyExperts
from .refusals import refuse_packed

# Modules called experts that hold the routed ones further below, or none.
NOT_ROUTED = frozenset({"dbrx.DbrxExperts", "vitpose_backbone.VitPoseNaiveMoe"})


class RoutedExperts(NamedTuple):
    """Routed experts found: their layout, their number E, and the module name of the block that routes to them."""

    layout: ExpertLayout
    num_experts: int
    block: str


def routed_experts(name: str, module: nn.Module) -> RoutedExperts | None:
    """The routed experts that `module` (module name `name`) holds; None if it holds none.

    Raises:
        UnsupportedArchitectureError: it is called `experts`, but its layout is not known.
    """
    match class_key(module):
        case "dbrx.DbrxExpertGLU":
            size = int(module.moe_num_experts)  # pyrefly: ignore[bad-argument-type]
            return RoutedExperts(FlatExperts(name, size), size, _block(name))
        case "doge.DogeCDMoE":
            size = int(module.num_keys)  # pyrefly: ignore[bad-argument-type]
            return RoutedExperts(ProductKeyExperts(name, size), size, name)
        case "jetmoe.JetMoeMoE" | "jetmoe.JetMoeMoA" as key:
            size = module.get_parameter("input_linear.weight").shape[0]
            return RoutedExperts(ParallelExperts(name, is_gated=key == "jetmoe.JetMoeMoE"), size, name)
    tensors = dict(module.named_parameters(recurse=False))
    down_proj = tensors.get("down_proj")
    if down_proj is not None and down_proj.ndim == 3 and tensors.keys() & {"gate_up_proj", "up_proj"}:
        return RoutedExperts(_fused(name, module, tensors), down_proj.shape[0], _block(name))
    if name.rpartition(".")[2] != "experts" or class_key(module) in NOT_ROUTED:
        return None
    for own, tensor in tensors.items():
        refuse_packed(f"{name}.{own}", tensor)
    # Beside the experts of a list there may be modules without weights, such as Dropout.
    children = {child: expert for child, expert in module.named_children() if list(expert.parameters())}
    if not children or not all(class_key(expert) in MLPS for expert in children.values()):
        kinds = sorted({class_key(expert) for expert in children.values()})
        raise UnsupportedArchitectureError(
            f"experts {name}: the layout of {class_key(module)} is not known"
            + (f", nor the MLP {kinds[0]}; see hf_moe_lmc.register_adapter" if kinds else "")
        )
    layouts = [mlp_layout(f"{name}.{child}", expert) for child, expert in children.items()]
    experts = tuple(layout for layout in layouts if isinstance(layout, DenseMlp))
    return RoutedExperts(ListedExperts(name, experts), len(experts), _block(name))


def _block(name: str) -> str:
    """The module name above `experts`."""
    block, found, _ = f".{name}".rpartition(".experts")
    if not found:
        raise UnsupportedArchitectureError(f"experts {name}: expected in a module called experts")
    return block.removeprefix(".")


def _fused(name: str, experts: nn.Module, tensors: dict[str, nn.Parameter]) -> FusedExperts:
    is_gated = "gate_up_proj" in tensors
    inward, down = tensors["gate_up_proj" if is_gated else "up_proj"].shape, tensors["down_proj"].shape
    expected = (inward[2], inward[1] // (2 if is_gated else 1))
    return FusedExperts(
        name,
        is_gated=is_gated,
        has_bias="down_proj_bias" in tensors,
        # Without the flag that Transformers sets, the shapes tell: H, F and 2F cannot fit both ways.
        is_transposed=bool(getattr(experts, "is_transposed", tuple(down[1:]) != expected)),
        is_interleaved=is_gated and not getattr(experts, "is_concatenated", True),
    )
