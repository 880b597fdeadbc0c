"""Finding the Mixture-of-Experts layers of a model."""

from torch import Tensor, nn

from hf_moe_lmc.errors import UnsupportedArchitectureError
from hf_moe_lmc.moe import SymmetryGroup

from .gates import admits_unit_signs
from .layouts import ExpertLayout
from .routed_experts import routed_experts
from .routers import admits_selection_bias_constant, admits_translation, class_key, expert_groups
from .shared_experts import NAMES as SHARED_EXPERTS
from .shared_experts import shared_experts
from .spec import MoeLayerSpec, RouterSpec

ROUTERS = ("gate", "router")

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
    "tid2eid": "expert_table",
}
# Tensors of routers that do not belong to one expert or another.
COMMON_ROUTER_TENSORS = frozenset({"scale", "global_scale", "router_states_scale"})
COMMON_ROUTER_MODULES = ("down_proj.", "router_mlp.norm.", "router_mlp.fc1.", "router_mlp.fc2.")

# Blocks whose experts cannot be permuted as things stand, and why.
REFUSED = {
    "doge.DogeCDMoE": "product keys are not read yet",
    "nllb_moe.NllbMoeSparseMLP": "Transformers sends all tokens to experts 0 and 1, so their order is no symmetry",
    "vitpose_backbone.VitPoseBackboneMoeMLP": "the caller chooses the expert by its number",
}


def moe_layers(model: nn.Module) -> tuple[MoeLayerSpec, ...]:
    """Every Mixture-of-Experts layer of `model` in module order; reads no weights, so a meta-device skeleton will do.

    Experts are found by how they are stored, and the router beside them by its name and class.

    Raises:
        UnsupportedArchitectureError: a router, a gate or a layout is not known, an adapter is not merged, weights are
            quantised, or there is no such layer.
    """
    modules = dict(model.named_modules())
    for name, module in modules.items():
        _refuse(name, module)
    routed = [
        found
        for name, module in modules.items()
        if name.rpartition(".")[2] not in SHARED_EXPERTS and (found := routed_experts(name, module))
    ]
    if not routed:
        raise UnsupportedArchitectureError(f"{type(model).__name__} has no Mixture-of-Experts layer that is known here")
    # Blocks of one layer may share their shared experts; the first one has them.
    specs, taken = [], set()
    for layout, num_experts, block in routed:
        shared = shared_experts(block, modules)
        specs.append(
            _spec(block, layout, num_experts, shared if shared and shared.name not in taken else None, modules)
        )
        taken |= {shared.name} if shared else set()
    return tuple(specs)


def _refuse(name: str, module: nn.Module) -> None:
    if reason := REFUSED.get(class_key(module)):
        raise UnsupportedArchitectureError(f"layer {name}: a {class_key(module)}: {reason}")
    if type(module).__module__.startswith("peft.tuners."):
        raise UnsupportedArchitectureError(
            f"layer {name}: a PEFT {type(module).__name__}; merge the adapter first (merge_and_unload)"
        )


def _spec(
    block_name: str,
    layout: ExpertLayout,
    num_experts: int,
    shared: ExpertLayout | None,
    modules: dict[str, nn.Module],
) -> MoeLayerSpec:
    block = modules[block_name]
    router_name = next((child for child in ROUTERS if isinstance(getattr(block, child, None), nn.Module)), None)
    if router_name is None:
        raise UnsupportedArchitectureError(f"experts {layout.name}: no router beside them in {class_key(block)}")
    router = block.get_submodule(router_name)
    signs = admits_unit_signs(layout.name, modules[layout.name], layout.is_gated)
    group = SymmetryGroup(
        expert_groups=expert_groups(router),
        router_translation=admits_translation(f"{block_name}.{router_name}", router),
        selection_bias_constant=admits_selection_bias_constant(router),
        unit_signs=signs,
        # A family's shared experts apply the gate of its routed ones.
        shared_unit_signs=signs and shared is not None and shared.is_gated,
    )
    tensors = _router_tensors(block_name, block, router_name)
    return MoeLayerSpec(block_name, RouterSpec(tensors, num_experts), layout, shared, group)


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
