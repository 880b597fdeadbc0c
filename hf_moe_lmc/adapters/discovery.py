"""Discovery of the layers of a Mixture-of-Experts model whose experts or units can be aligned."""

from collections.abc import Iterable

from torch import Tensor, nn
from transformers.utils import logging

from hf_moe_lmc.errors import UnsupportedArchitectureError

from .detection import RoutedExperts, dense_mlps, routed_experts, shared_experts, unknown_mlps
from .families import ROUTER_TENSORS, RouterFacts, class_key, facts_of
from .layouts import ExpertLayout, HeadedMlp
from .quantised import module_tensors, refuse_quantised
from .spec import MoeLayerSpec, RouterSpec
from .symmetries import dense_group, routed_group, router_facts

logger = logging.get_logger(__name__)

ROUTERS = ("gate", "router", "router_gate")


def moe_layers(model: nn.Module) -> tuple[MoeLayerSpec, ...]:
    """Every layer of `model` with a router, in module order; reads no weights, so a meta-device skeleton will do.

    Experts are found by their layout, and the router beside them by its name and class.

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
    _refuse_adapters(modules)
    routed = [experts for name, module in modules.items() if (experts := routed_experts(name, module))]
    # Before rows are compared with experts: a list shows one with two names once.
    _refuse_tied((name for experts in routed for name in experts.layout.tensor_names), model)
    # Blocks of one layer may share their shared experts; the first one has them.
    specs, taken = [], set()
    for experts in routed:
        shared = shared_experts(experts.block, modules)
        specs.append(_moe_spec(experts, shared if shared and shared.name not in taken else None, modules))
        taken |= {shared.name} if shared else set()
    taken |= {experts.layout.name for experts in routed}
    specs += [_dense_spec(layout, modules) for layout in dense_mlps(modules, taken)]
    if not any(spec.router or isinstance(spec.experts, HeadedMlp) for spec in specs):
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} has no Mixture-of-Experts layer; one of your own? See hf_moe_lmc.register_adapter"
        )
    _refuse_tied((name for spec in specs for name in spec.tensor_names), model)
    place = {name: index for index, name in enumerate(modules)}
    specs.sort(key=lambda spec: place[spec.name])
    blocks = {experts.block for experts in routed}
    return tuple(specs), tuple(unknown_mlps(modules, blocks, {spec.name for spec in specs}))


def _dense_spec(mlp: ExpertLayout, modules: dict[str, nn.Module]) -> MoeLayerSpec:
    refuse_quantised(mlp.tensor_names, modules)
    return MoeLayerSpec(mlp.name, None, mlp, None, dense_group(mlp.name, modules[mlp.name]))


def _moe_spec(routed: RoutedExperts, shared: ExpertLayout | None, modules: dict[str, nn.Module]) -> MoeLayerSpec:
    block, layout = modules[routed.block], routed.layout
    refuse_quantised((*layout.tensor_names, *(shared.tensor_names if shared else ())), modules)
    child = next((child for child in ROUTERS if isinstance(getattr(block, child, None), nn.Module)), None)
    if child is None:
        raise UnsupportedArchitectureError(f"experts {layout.name}: no router beside them in {class_key(block)}")
    router, name = block.get_submodule(child), f"{routed.block}.{child}"
    # Only the block knows what a plain linear is used for.
    router = block if type(router) is nn.Linear else router
    group = routed_group(name, router, layout, shared, modules)
    facts, stated = router_facts(name, router), facts_of(modules[layout.name]).experts
    tensors = _router_tensors(routed.block, block, child, facts)
    _check_rows(tensors, routed.num_experts, group.product_keys, facts)
    names = tuple(sorted((field, tensor_name) for field, (tensor_name, _) in tensors.items()))
    return MoeLayerSpec(
        routed.block,
        RouterSpec(names, routed.num_experts, group.product_keys),
        layout,
        shared,
        group,
        tuple(routed.kept_rows.items()),
        used_in_parts=bool(stated and stated.used_in_parts),
    )


def _router_tensors(block_name: str, block: nn.Module, child: str, facts: RouterFacts) -> dict[str, tuple[str, Tensor]]:
    """Field of `Router` -> the tensor that it is, and its module name."""
    tensors, router = {}, f"{block_name}.{child}"
    for name, tensor in module_tensors(block.get_submodule(child), recurse=True):
        if name in ROUTER_TENSORS:
            tensors[ROUTER_TENSORS[name]] = f"{router}.{name}", tensor
        elif not any(name == common or name.startswith(f"{common}.") for common in facts.common_tensors):
            raise UnsupportedArchitectureError(
                f"router {router}: tensor {name} is not known; see hf_moe_lmc.register_adapter"
            )
    for name, tensor in module_tensors(block, recurse=False):
        if ROUTER_TENSORS.get(name) == "selection_bias":
            tensors["selection_bias"] = f"{block_name}.{name}", tensor
    return tensors


def _check_rows(
    tensors: dict[str, tuple[str, Tensor]], num_experts: int, product_keys: bool, facts: RouterFacts
) -> None:
    """Refuse a router that has too few rows, or others after those of the experts that nobody is known to own."""
    for field, (name, tensor) in tensors.items():
        if field == "expert_table":
            continue
        rows = len(tensor) if field == "weight" else tensor.numel()
        own = 2 * num_experts if product_keys else num_experts
        if rows < own or (rows > own and facts.further_rows is None):
            raise UnsupportedArchitectureError(
                f"tensor {name} has {rows} rows for {num_experts} experts; see hf_moe_lmc.register_adapter"
            )


def _refuse_adapters(modules: dict[str, nn.Module]) -> None:
    for name, module in modules.items():
        if type(module).__module__.startswith("peft.tuners."):
            raise UnsupportedArchitectureError(
                f"layer {name}: a PEFT {type(module).__name__}; merge the adapter first (merge_and_unload)"
            )


def _refuse_tied(names: Iterable[str], model: nn.Module) -> None:
    """Refuse a tensor of `names` that has a second name: it would be permuted twice."""
    aliases: dict[int, list[str]] = {}
    for tensors in (model.named_parameters, model.named_buffers):
        for name, tensor in tensors(remove_duplicate=False):
            aliases.setdefault(id(tensor), []).append(name)
    known = set(names)
    for tied in aliases.values():
        if len(tied) > 1 and known & set(tied):
            raise UnsupportedArchitectureError(
                f"tensor {tied[0]} is tied to {tied[1]}; what suits one layer breaks the other: untie them first"
            )
