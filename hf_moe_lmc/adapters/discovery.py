"""Finding the Mixture-of-Experts layers of a model."""

from torch import Tensor, nn

from hf_moe_lmc.errors import UnsupportedArchitectureError
from hf_moe_lmc.moe import SymmetryGroup

from .gates import admits_unit_signs
from .routers import admits_selection_bias_constant, admits_translation, class_key, expert_groups
from .spec import FusedExperts, MoeLayerSpec, RouterSpec, SharedMlp

ROUTERS = ("gate", "router")
SHARED_EXPERTS = ("shared_expert", "shared_experts", "shared_mlp")

# Names of a router's tensors below the router, or of a selection bias below the block -> field of `Router`.
ROUTER_TENSORS = {
    "weight": "weight",
    "gate.weight": "weight",
    "proj.weight": "weight",
    "wg.weight": "weight",
    "bias": "bias",
    "e_score_correction_bias": "selection_bias",
    "expert_bias": "selection_bias",
    "moe_statics.e_score_correction_bias": "selection_bias",
    "per_expert_scale": "per_expert_scale",
}
# Tensors of routers that do not belong to one expert or another.
COMMON_ROUTER_TENSORS = frozenset({"scale"})

# Linears of a shared MLP: gate (None, or in one with up), up, down.
SHARED_LAYOUTS = (
    ("gate_proj", "up_proj", "down_proj"),
    (None, "up_proj", "down_proj"),
    ("gate_up_proj", "gate_up_proj", "down_proj"),
    ("input_linear", "input_linear", "output_linear"),
)


def find_moe_layers(model: nn.Module) -> tuple[MoeLayerSpec, ...]:
    """Every Mixture-of-Experts layer of `model` in module order; reads no weights, so a meta-device skeleton will do.

    Experts are modules that hold a 3-D `down_proj`; the router is found beside them.

    Raises:
        UnsupportedArchitectureError: a router, a gate or a layout is not known, or there is no such layer.
    """
    modules = dict(model.named_modules())
    names = [name for name, module in modules.items() if _holds_experts(module)]
    if not names:
        raise UnsupportedArchitectureError(f"{type(model).__name__} has no Mixture-of-Experts layer that is known here")
    return tuple(_spec(name, modules) for name in names)


def _holds_experts(module: nn.Module) -> bool:
    down_proj = dict(module.named_parameters(recurse=False)).get("down_proj")
    return down_proj is not None and down_proj.ndim == 3


def _spec(name: str, modules: dict[str, nn.Module]) -> MoeLayerSpec:
    block_name = name.rpartition(".")[0]
    block, experts_module = modules[block_name], modules[name]
    router_name = next((child for child in ROUTERS if isinstance(getattr(block, child, None), nn.Module)), None)
    if router_name is None:
        raise UnsupportedArchitectureError(f"experts {name}: no router beside them in {class_key(block)}")
    router = block.get_submodule(router_name)
    translation = admits_translation(f"{block_name}.{router_name}", router)
    experts = _experts(name, experts_module)
    signs = admits_unit_signs(name, experts_module, experts.is_gated)
    shared = _shared(block_name, modules)
    group = SymmetryGroup(
        expert_groups=expert_groups(router),
        router_translation=translation,
        selection_bias_constant=admits_selection_bias_constant(router),
        unit_signs=signs,
        # A family's shared experts apply the gate of its routed ones.
        shared_unit_signs=signs and shared is not None and shared.gate is not None,
    )
    return MoeLayerSpec(block_name, _router(block_name, block, router_name), experts, shared, group)


def _router(block_name: str, block: nn.Module, router_name: str) -> RouterSpec:
    found = {}
    for name, _ in _tensors(block.get_submodule(router_name), recurse=True):
        if name not in ROUTER_TENSORS and name not in COMMON_ROUTER_TENSORS:
            router = f"{block_name}.{router_name}"
            raise UnsupportedArchitectureError(f"router {router}: tensor {name} is not known; its role is not guessed")
        if name in ROUTER_TENSORS:
            found[ROUTER_TENSORS[name]] = f"{block_name}.{router_name}.{name}"
    for name, _ in _tensors(block, recurse=False):
        if ROUTER_TENSORS.get(name) == "selection_bias":
            found["selection_bias"] = f"{block_name}.{name}"
    return RouterSpec(tuple(sorted(found.items())))


def _tensors(module: nn.Module, recurse: bool) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=recurse), *module.named_buffers(recurse=recurse)]


def _experts(name: str, experts: nn.Module) -> FusedExperts:
    tensors = dict(experts.named_parameters(recurse=False))
    is_gated = "gate_up_proj" in tensors
    inward = tensors["gate_up_proj" if is_gated else "up_proj"].shape
    expected = (inward[0], tensors["down_proj"].shape[1], inward[1] // (2 if is_gated else 1))
    # Without the flag that Transformers sets, the shapes tell: H, F and 2F cannot fit both ways.
    is_transposed = getattr(experts, "is_transposed", tuple(tensors["down_proj"].shape) != expected)
    return FusedExperts(
        name,
        is_gated=is_gated,
        has_bias="down_proj_bias" in tensors,
        is_transposed=is_transposed,
        is_interleaved=is_gated and not getattr(experts, "is_concatenated", True),
    )


def _shared(block_name: str, modules: dict[str, nn.Module]) -> SharedMlp | None:
    # Granite keeps its shared MLP beside the block, the others inside it.
    for owner in (block_name, block_name.rpartition(".")[0]):
        for child in SHARED_EXPERTS:
            name = f"{owner}.{child}"
            if name in modules:
                return _shared_mlp(name, modules[name])
    return None


def _shared_mlp(name: str, mlp: nn.Module) -> SharedMlp:
    linears = {child for child, module in mlp.named_children() if isinstance(getattr(module, "weight", None), Tensor)}
    for gate, up, down in SHARED_LAYOUTS:
        if linears == {linear for linear in (gate, up, down) if linear}:
            has_bias = getattr(mlp.get_submodule(down), "bias", None) is not None
            return SharedMlp(name, up, down, gate, has_bias)
    raise UnsupportedArchitectureError(f"shared experts {name}: the layout of {class_key(mlp)} is not known")
