"""Finding the Mixture-of-Experts layers of a model."""

from torch import nn

from hf_moe_lmc.errors import UnsupportedArchitectureError

from .families import BLOCKS, BlockRow
from .spec import FusedExperts, MoeLayerSpec, RouterSpec, SharedMlp


def find_moe_layers(model: nn.Module) -> tuple[MoeLayerSpec, ...]:
    """Every Mixture-of-Experts layer of `model` in module order; reads no weights, so a meta-device skeleton will do.

    Raises:
        UnsupportedArchitectureError: a block is not known, or there is none.
    """
    modules = dict(model.named_modules())
    specs = []
    for name, module in modules.items():
        row = BLOCKS.get(f"{type(module).__module__}.{type(module).__qualname__}")
        if row is not None:
            specs.append(_spec(name, module, row))
        elif _holds_fused_experts(module) and not any(name == spec.experts.name for spec in specs):
            block = modules[name.rpartition(".")[0]]
            raise UnsupportedArchitectureError(
                f"layer {name}: experts in a {type(block).__name__}, whose symmetries are not known; "
                f"supported blocks: {', '.join(key.rpartition('.')[2] for key in BLOCKS)}"
            )
    if not specs:
        raise UnsupportedArchitectureError(f"{type(model).__name__} has no Mixture-of-Experts layer that is known here")
    return tuple(specs)


def _holds_fused_experts(module: nn.Module) -> bool:
    down_proj = dict(module.named_parameters(recurse=False)).get("down_proj")
    return down_proj is not None and down_proj.ndim == 3


def _spec(name: str, block: nn.Module, row: BlockRow) -> MoeLayerSpec:
    router, experts = block.get_submodule(row.router), block.get_submodule("experts")
    shared = getattr(block, row.shared_experts, None) if row.shared_experts else None
    return MoeLayerSpec(
        name,
        RouterSpec(f"{name}.{row.router}", row.scoring, has_bias=getattr(router, "bias", None) is not None),
        FusedExperts(f"{name}.experts", is_gated=bool(experts.has_gate), has_bias=bool(experts.has_bias)),
        None
        if shared is None
        else SharedMlp(
            f"{name}.{row.shared_experts}",
            is_gated=hasattr(shared, "gate_proj"),
            has_bias=shared.up_proj.bias is not None,
        ),
    )
