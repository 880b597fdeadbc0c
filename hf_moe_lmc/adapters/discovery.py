"""Finding the Mixture-of-Experts layers of a model."""

from collections.abc import Mapping

from torch import Tensor, nn

from hf_moe_lmc.errors import UnsupportedArchitectureError
from hf_moe_lmc.moe import SymmetryGroup

from .gates import admits_unit_signs
from .layouts import ExpertLayout, FlatExperts, FusedExperts, ListedExperts, SharedMlp, StackedExperts
from .routers import admits_selection_bias_constant, admits_translation, class_key, expert_groups
from .spec import MoeLayerSpec, RouterSpec

ROUTERS = ("gate", "router")
SHARED_EXPERTS = ("shared_expert", "shared_experts", "shared_mlp")

# Names of a router's tensors below the router, or of a selection bias below the block -> field of `Router`.
ROUTER_TENSORS = {
    "weight": "weight",
    "classifier.weight": "weight",
    "gate.weight": "weight",
    "layer.weight": "weight",
    "proj.weight": "weight",
    "router_mlp.out_proj.weight": "weight",
    "wg.weight": "weight",
    "bias": "bias",
    "classifier.bias": "bias",
    "balancing_biases": "selection_bias",
    "e_score_correction_bias": "selection_bias",
    "expert_bias": "selection_bias",
    "moe_statics.e_score_correction_bias": "selection_bias",
    "per_expert_scale": "per_expert_scale",
}
# Tensors of routers that do not belong to one expert or another.
COMMON_ROUTER_TENSORS = frozenset({"scale", "global_scale", "router_states_scale"})
COMMON_ROUTER_MODULES = ("down_proj.", "router_mlp.norm.", "router_mlp.fc1.", "router_mlp.fc2.")

# Blocks whose experts cannot be permuted as things stand, and why.
REFUSED = {
    "deepseek_v4.DeepseekV4HashRouter": "its table of token numbers -> experts is not rewritten yet",
    "doge.DogeCDMoE": "product keys are not read yet",
    "jetmoe.JetMoeMoE": "its parallel linears are not read yet",
    "nllb_moe.NllbMoeSparseMLP": "Transformers sends all tokens to experts 0 and 1, so their order is no symmetry",
    "vitpose_backbone.VitPoseBackboneMoeMLP": "the caller chooses the expert by its number",
}

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
    for name, module in modules.items():
        if reason := REFUSED.get(class_key(module)):
            raise UnsupportedArchitectureError(f"layer {name}: a {class_key(module)}: {reason}")
    experts = [layout for name, module in modules.items() if (layout := _experts(name, module))]
    if not experts:
        raise UnsupportedArchitectureError(f"{type(model).__name__} has no Mixture-of-Experts layer that is known here")
    shared: set[str] = set()
    return tuple(_spec(layout, size, modules, shared) for layout, size in experts)


def _experts(name: str, module: nn.Module) -> tuple[ExpertLayout, int] | None:
    """The layout of the routed experts that `module` holds, and their number E; None if it holds none."""
    tensors = dict(module.named_parameters(recurse=False))
    down_proj = tensors.get("down_proj")
    if name.rpartition(".")[2] in SHARED_EXPERTS:
        return None
    if class_key(module) == "dbrx.DbrxExpertGLU":
        size = int(module.moe_num_experts)  # pyrefly: ignore[bad-argument-type]
        return FlatExperts(name, size), size
    if class_key(module) == "switch_transformers.SwitchTransformersExperts":
        size = len(list(module.children()))
        return ListedExperts(name, size), size
    if down_proj is not None and down_proj.ndim == 3:
        return _fused(name, module, tensors), down_proj.shape[0]
    return None


def _spec(layout: ExpertLayout, size: int, modules: dict[str, nn.Module], taken: set[str]) -> MoeLayerSpec:
    """`taken` holds the shared experts of the layers before, for blocks that share theirs."""
    block_name = layout.name.rpartition(".experts")[0]
    block = modules[block_name]
    router_name = next((child for child in ROUTERS if isinstance(getattr(block, child, None), nn.Module)), None)
    if router_name is None:
        raise UnsupportedArchitectureError(f"experts {layout.name}: no router beside them in {class_key(block)}")
    router = block.get_submodule(router_name)
    translation = admits_translation(f"{block_name}.{router_name}", router)
    signs = admits_unit_signs(layout.name, modules[layout.name], layout.is_gated)
    shared = _shared(block_name, modules)
    if shared is not None and shared.name in taken:
        shared = None
    taken |= {shared.name} if shared else set()
    group = SymmetryGroup(
        expert_groups=expert_groups(router),
        router_translation=translation,
        selection_bias_constant=admits_selection_bias_constant(router),
        unit_signs=signs,
        # A family's shared experts apply the gate of its routed ones.
        shared_unit_signs=signs and shared is not None and shared.is_gated,
    )
    router_spec = RouterSpec(_router_tensors(block_name, block, router_name), size)
    return MoeLayerSpec(block_name, router_spec, layout, shared, group)


def _router_tensors(block_name: str, block: nn.Module, router_name: str) -> tuple[tuple[str, str], ...]:
    found = {}
    for name, _ in _tensors(block.get_submodule(router_name), recurse=True):
        if name in ROUTER_TENSORS:
            found[ROUTER_TENSORS[name]] = f"{block_name}.{router_name}.{name}"
        elif name not in COMMON_ROUTER_TENSORS and not name.startswith(COMMON_ROUTER_MODULES):
            router = f"{block_name}.{router_name}"
            raise UnsupportedArchitectureError(f"router {router}: tensor {name} is not known; its role is not guessed")
    for name, _ in _tensors(block, recurse=False):
        if ROUTER_TENSORS.get(name) == "selection_bias":
            found["selection_bias"] = f"{block_name}.{name}"
    return tuple(sorted(found.items()))


def _tensors(module: nn.Module, recurse: bool) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=recurse), *module.named_buffers(recurse=recurse)]


def _fused(name: str, experts: nn.Module, tensors: Mapping[str, Tensor]) -> FusedExperts:
    is_gated = "gate_up_proj" in tensors
    inward = tensors["gate_up_proj" if is_gated else "up_proj"].shape
    down = tuple(tensors["down_proj"].shape)
    expected = (inward[2], inward[1] // (2 if is_gated else 1))
    # Without the flag that Transformers sets, the shapes tell: H, F and 2F cannot fit both ways.
    is_transposed = bool(getattr(experts, "is_transposed", down[1:] != expected))
    return FusedExperts(
        name,
        is_gated=is_gated,
        has_bias="down_proj_bias" in tensors,
        is_transposed=is_transposed,
        is_interleaved=is_gated and not getattr(experts, "is_concatenated", True),
    )


def _shared(block_name: str, modules: dict[str, nn.Module]) -> ExpertLayout | None:
    # Granite keeps its shared MLP beside the block, the others inside it.
    for owner in (block_name, block_name.rpartition(".")[0]):
        for child in SHARED_EXPERTS:
            name = f"{owner}.{child}"
            if isinstance(modules.get(name), nn.Module):
                return _shared_mlp(name, modules[name])
    return None


def _shared_mlp(name: str, mlp: nn.Module) -> ExpertLayout:
    if {"gate_proj", "up_proj", "down_proj"} == dict(mlp.named_parameters(recurse=False)).keys():
        return StackedExperts(name)
    linears = {child for child, module in mlp.named_children() if isinstance(getattr(module, "weight", None), Tensor)}
    for gate, up, down in SHARED_LAYOUTS:
        if linears == {linear for linear in (gate, up, down) if linear}:
            has_bias = getattr(mlp.get_submodule(down), "bias", None) is not None
            return SharedMlp(name, up, down, gate, has_bias)
    raise UnsupportedArchitectureError(f"shared experts {name}: the layout of {class_key(mlp)} is not known")
