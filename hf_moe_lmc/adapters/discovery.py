"""Finding the layers of a Mixture-of-Experts model whose experts or units can be aligned."""

from torch import nn
from transformers.utils import logging

from hf_moe_lmc.errors import UnsupportedArchitectureError
from hf_moe_lmc.moe import SymmetryGroup

from .class_key import class_key
from .gates import UnitFreedom, expert_units, mlp_units
from .headed_mlp import HeadedMlp
from .layouts import ExpertLayout, StackedExperts
from .mlp_layouts import DenseMlp, ListedExperts
from .mlps import SHARED, dense_mlps, shared_experts, unknown_mlps
from .product_key_experts import ProductKeyExperts
from .refusals import module_tensors, refuse_adapter, refuse_quantised, refuse_tied
from .routed_experts import RoutedExperts, routed_experts
from .routers import admits_scale, admits_selection_bias_constant, admits_translation, expert_groups
from .spec import MoeLayerSpec, RouterSpec

logger = logging.get_logger(__name__)

ROUTERS = ("gate", "router", "router_gate")

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

# Experts whose order is no symmetry: Transformers sends all tokens of NLLB-MoE to its experts 0 and 1.
FIXED_EXPERTS = frozenset({"nllb_moe.NllbMoeExperts"})
# Experts whose units are no symmetry: those of JetMoe's attention are dimensions of query heads.
FIXED_UNITS = frozenset({"jetmoe.JetMoeMoA"})
# Experts whose answers are normalised before they are weighted.
NORMALISED = frozenset({"muse_spark.MuseSparkExperts"})


def moe_layers(model: nn.Module) -> tuple[MoeLayerSpec, ...]:
    """Every layer of `model` with a router, in module order; reads no weights, so a meta-device skeleton will do.

    Experts are found by how they are stored, and the router beside them by its name and class.

    Raises:
        UnsupportedArchitectureError: a router, a gate or a layout is not known, an adapter is not merged, weights are
            quantised, or there is no such layer.
    """
    return tuple(spec for spec in _discover(model)[0] if spec.router)


def alignable_layers(model: nn.Module) -> tuple[MoeLayerSpec, ...]:
    """`moe_layers`, and every MLP among them that no router chooses, as a layer without router, in module order.

    Dense MLPs are found by their class. A warning names those that stay unaligned (`unaligned_layers`).

    Raises:
        UnsupportedArchitectureError: as `moe_layers`.
    """
    specs, unaligned = _discover(model)
    if unaligned:
        logger.warning_once(
            f"{type(model).__name__}: no symmetry is known of {', '.join(unaligned)}; they are merged as they are. "
            "See hf_moe_lmc.register_adapter."
        )
    return specs


def unaligned_layers(model: nn.Module) -> tuple[str, ...]:
    """Module names that stand where other layers of `model` have their experts, and are of no known class.

    Raises:
        UnsupportedArchitectureError: as `moe_layers`.
    """
    return _discover(model)[1]


def _discover(model: nn.Module) -> tuple[tuple[MoeLayerSpec, ...], tuple[str, ...]]:
    modules = dict(model.named_modules())
    for name, module in modules.items():
        refuse_adapter(name, module)
    routed = [
        found
        for name, module in modules.items()
        if name.rpartition(".")[2] not in SHARED and (found := routed_experts(name, module))
    ]
    # Blocks of one layer may share their shared experts; the first one has them.
    specs, taken = [], set()
    for found in routed:
        shared = shared_experts(found.block, modules)
        specs.append(_moe_spec(found, shared if shared and shared.name not in taken else None, modules))
        taken |= {shared.name} if shared else set()
    taken |= {found.layout.name for found in routed}
    specs += [_dense_spec(layout, modules) for layout in dense_mlps(modules, taken)]
    if not any(spec.router or isinstance(spec.experts, HeadedMlp) for spec in specs):
        raise UnsupportedArchitectureError(f"{type(model).__name__} has no Mixture-of-Experts layer that is known here")
    refuse_tied((name for spec in specs for name in spec.tensor_names), model)
    place = {name: index for index, name in enumerate(modules)}
    specs.sort(key=lambda spec: place[spec.name])
    blocks = {found.block for found in routed}
    return tuple(specs), tuple(unknown_mlps(modules, blocks, {spec.name for spec in specs}))


def _dense_spec(mlp: DenseMlp | HeadedMlp | StackedExperts, modules: dict[str, nn.Module]) -> MoeLayerSpec:
    refuse_quantised(mlp.tensor_names, modules)
    units = mlp_units(mlp.name, modules[mlp.name])
    group = SymmetryGroup(fixed_experts=True, unit_signs=units.signs, unit_scale_degree=units.scale_degree)
    return MoeLayerSpec(mlp.name, None, mlp, None, group)


def _moe_spec(
    found: RoutedExperts, shared: DenseMlp | StackedExperts | None, modules: dict[str, nn.Module]
) -> MoeLayerSpec:
    block, layout = modules[found.block], found.layout
    refuse_quantised((*layout.tensor_names, *(shared.tensor_names if shared else ())), modules)
    router_name = next((child for child in ROUTERS if isinstance(getattr(block, child, None), nn.Module)), None)
    if router_name is None:
        raise UnsupportedArchitectureError(f"experts {layout.name}: no router beside them in {class_key(block)}")
    router, key = block.get_submodule(router_name), class_key(modules[layout.name])
    # What a plain linear is used for, the block knows.
    router = block if type(router) is nn.Linear else router
    units = _units(layout, modules)
    shared_units = mlp_units(shared.name, modules[shared.name]) if shared else UnitFreedom(False, 0)
    group = SymmetryGroup(
        expert_groups=expert_groups(router),
        fixed_experts=key in FIXED_EXPERTS,
        fixed_units=key in FIXED_UNITS,
        product_keys=isinstance(layout, ProductKeyExperts),
        router_translation=admits_translation(f"{found.block}.{router_name}", router),
        router_scale=admits_scale(router),
        selection_bias_constant=admits_selection_bias_constant(router),
        unit_signs=units.signs,
        unit_scale_degree=units.scale_degree,
        expert_output_scale=key in NORMALISED,
        shared_unit_signs=shared_units.signs,
        shared_unit_scale_degree=shared_units.scale_degree,
    )
    tensors = _router_tensors(found.block, block, router_name)
    return MoeLayerSpec(found.block, RouterSpec(tensors, found.num_experts, group.product_keys), layout, shared, group)


def _units(layout: ExpertLayout, modules: dict[str, nn.Module]) -> UnitFreedom:
    if isinstance(layout, ListedExperts):
        return mlp_units(layout.experts[0].name, modules[layout.experts[0].name])
    return expert_units(layout.name, modules[layout.name])


def _router_tensors(block_name: str, block: nn.Module, router_name: str) -> tuple[tuple[str, str], ...]:
    found, router = {}, f"{block_name}.{router_name}"
    for name, _ in module_tensors(block.get_submodule(router_name), recurse=True):
        if name in ROUTER_TENSORS:
            found[ROUTER_TENSORS[name]] = f"{router}.{name}"
        elif name not in COMMON_ROUTER_TENSORS and not name.startswith(COMMON_ROUTER_MODULES):
            raise UnsupportedArchitectureError(f"router {router}: tensor {name} is not known; its role is not guessed")
    for name, _ in module_tensors(block, recurse=False):
        if ROUTER_TENSORS.get(name) == "selection_bias":
            found["selection_bias"] = f"{block_name}.{name}"
    return tuple(sorted(found.items()))
