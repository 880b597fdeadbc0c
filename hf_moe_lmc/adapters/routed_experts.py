"""Which modules hold routed experts, and in which layout."""

from typing import NamedTuple

from torch import Tensor, nn

from hf_moe_lmc.errors import UnsupportedArchitectureError

from .layouts import ExpertLayout, FlatExperts, FusedExperts, ListedExperts, ParallelExperts
from .routers import class_key


class RoutedExperts(NamedTuple):
    """Routed experts found: their layout, their number E, and the module name of the block that routes to them."""

    layout: ExpertLayout
    num_experts: int
    block: str


def routed_experts(name: str, module: nn.Module) -> RoutedExperts | None:
    """The routed experts that `module` (module name `name`) holds; None if it holds none.

    Raises:
        UnsupportedArchitectureError: it holds tensors that are not known, or quantised ones.
    """
    tensors = dict(module.named_parameters(recurse=False))
    match class_key(module):
        case "dbrx.DbrxExpertGLU":
            size = int(module.moe_num_experts)  # pyrefly: ignore[bad-argument-type]
            return RoutedExperts(FlatExperts(name, size), size, _block(name))
        case "jetmoe.JetMoeMoE":
            return RoutedExperts(ParallelExperts(name), module.get_parameter("input_linear.weight").shape[0], name)
        case "switch_transformers.SwitchTransformersExperts":
            size = len(list(module.children()))
            return RoutedExperts(ListedExperts(name, size), size, _block(name))
    down_proj = tensors.get("down_proj")
    if down_proj is None or down_proj.ndim != 3:
        return None
    _check_tensors(name, tensors | dict(module.named_buffers(recurse=False)))
    return RoutedExperts(_fused(name, module, tensors), down_proj.shape[0], _block(name))


def _block(name: str) -> str:
    """The module name above `experts`."""
    block, found, _ = f".{name}".rpartition(".experts")
    if not found:
        raise UnsupportedArchitectureError(f"experts {name}: expected in a module called experts")
    return block.removeprefix(".")


def _check_tensors(name: str, tensors: dict[str, Tensor]) -> None:
    known = {f"{part}{suffix}" for part in ("gate_up_proj", "up_proj", "down_proj") for suffix in ("", "_bias")}
    if strangers := tensors.keys() - known:
        raise UnsupportedArchitectureError(
            f"experts {name}: tensor {min(strangers)} is not known; a quantised model must be dequantised first"
        )
    for tensor_name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise UnsupportedArchitectureError(
                f"experts {name}: {tensor_name} is {tensor.dtype}; a quantised model must be dequantised first"
            )


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
