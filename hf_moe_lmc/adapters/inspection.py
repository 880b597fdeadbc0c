"""Description of the layers of a Mixture-of-Experts model, for a meta-device skeleton as for one with weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from hf_moe_lmc.errors import UnsupportedArchitectureError
from hf_moe_lmc.moe import MoeLayer, SymmetryGroup

from .discovery import alignable_layers, unaligned_layers
from .families import class_key, facts_of
from .spec import MoeLayerSpec


@dataclass(frozen=True)
class LayerInspection:
    """One Mixture-of-Experts layer, or a dense one among them: a single expert without router.

    Args:
        name: module name of the block.
        num_experts: E.
        num_units: F, units of an expert.
        hidden_size: H, the size of an expert's input and output.
        experts_per_token: K; 1 without router.
        expert_groups: G of group-limited routing; 1 without.
        shared_experts: number of shared experts as they are stored (most families store all of them as one wide MLP).
        shared_units: units of each.
        router: class of the router; None without.
        symmetries: names of the rewrites that leave the function unchanged.
        log10_symmetries: log10 of the number of expert orders, unit orders and unit signs.
        parameters: of router, experts and shared experts.
        bytes: size of those.
    """

    name: str
    num_experts: int
    num_units: int
    hidden_size: int
    experts_per_token: int
    expert_groups: int
    shared_experts: int
    shared_units: int
    router: str | None
    symmetries: tuple[str, ...]
    log10_symmetries: float
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """A whole model.

    Args:
        model_class: its name.
        layers: its Mixture-of-Experts layers, and the dense ones among them, in module order.
        unaligned: module names of dense layers whose symmetries are not known.
        parameters, bytes: of the whole model, tied weights once.
    """

    model_class: str
    layers: tuple[LayerInspection, ...]
    unaligned: tuple[str, ...]
    parameters: int
    bytes: int

    @property
    def log10_symmetries(self) -> float:
        """log10 of the number of discrete symmetries of the model: the layers are independent."""
        return sum(layer.log10_symmetries for layer in self.layers)


def inspect(model: nn.Module) -> Inspection:
    """Describe `model`, reading no weights.

    Raises:
        UnsupportedArchitectureError: as `moe_layers`; or a router does not say how many experts a token is sent to.
    """
    parameters, tensors = list(model.parameters()), model.state_dict()
    return Inspection(
        type(model).__name__,
        tuple(_inspect_layer(model, spec, tensors) for spec in alignable_layers(model)),
        unaligned_layers(model),
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.nbytes for parameter in parameters),
    )


def _inspect_layer(model: nn.Module, spec: MoeLayerSpec, tensors: Mapping[str, Tensor]) -> LayerInspection:
    layer = spec.read(tensors)
    experts, units, shared, _ = layer.symmetry_shape
    if spec.group.product_keys:
        experts, units = experts * units, 1
    router = router_of(model, spec)
    modules = [model.get_submodule(part.name) for part in spec.parts] + ([router] if router else [])
    # JetMoe's experts contain their router.
    parameters = {id(parameter): parameter for module in modules for parameter in module.parameters()}.values()
    return LayerInspection(
        name=spec.name,
        num_experts=experts,
        num_units=units,
        hidden_size=layer.experts.up_proj.shape[2],
        experts_per_token=experts_per_token(model, spec),
        expert_groups=spec.group.expert_groups,
        shared_experts=shared[0] if shared else 0,
        shared_units=shared[1] if shared else 0,
        router=class_key(router).rpartition(".")[2] if router else None,
        symmetries=_symmetries(spec, layer),
        log10_symmetries=log10_order(spec.group, *layer.symmetry_shape),
        parameters=sum(parameter.numel() for parameter in parameters),
        bytes=sum(parameter.nbytes for parameter in parameters),
    )


def _symmetries(spec: MoeLayerSpec, layer: MoeLayer) -> tuple[str, ...]:
    group, router = spec.group, dict(spec.router.tensors) if spec.router else {}
    *_, shared, zero = layer.symmetry_shape
    words = {
        "experts": group.expert_order == "all",
        "keys": group.expert_order == "keys",
        f"experts in {group.expert_groups} groups": group.expert_order == "groups",
        "units": group.unit_order,
        "unit signs": group.unit_signs,
        "unit scales": group.unit_scale_degree > 0,
        "shared experts": shared is not None and shared[0] > 1,
        "shared units": shared is not None,
        "shared unit signs": group.shared_unit_signs,
        "shared unit scales": group.shared_unit_scale_degree > 0,
        "zero experts": zero > 1,
        "expert output scales": group.expert_output_scale,
        "router translation": group.router_translation,
        "router scale": group.router_scale,
        "selection bias constant": group.selection_bias_constant and "selection_bias" in router,
    }
    return tuple(word for word, holds in words.items() if holds)


def log10_order(group: SymmetryGroup, experts: int, units: int, shared: tuple[int, int] | None, zero: int = 0) -> float:
    """log10 of `G! ((E/G)!)^G (F! 2^F)^E S! (F'! 2^F')^S Z!`, 2 only where signs are free; what is fixed counts 1.

    The order of the discrete part of a layer's group, for the sizes of `MoeLayer.symmetry_shape`.
    """

    def of_units(size: int, signs: bool) -> float:
        return _log10_factorial(size) + size * signs * math.log10(2)

    order, groups = _log10_factorial(zero), group.expert_groups
    if not group.fixed_experts:
        order += _log10_factorial(groups) + groups * _log10_factorial(experts // groups)
    if group.unit_order:
        order += experts * of_units(units, group.unit_signs)
    if shared:
        order += _log10_factorial(shared[0]) + shared[0] * of_units(shared[1], group.shared_unit_signs)
    return order


def _log10_factorial(n: int) -> float:
    return math.lgamma(n + 1) / math.log(10)


def router_of(model: nn.Module, spec: MoeLayerSpec) -> nn.Module | None:
    """The router module of a layer of `model`: the child of the block that holds the router's weight; None without."""
    if spec.router is None:
        return None
    weight = dict(spec.router.tensors)["weight"]
    child = weight.removeprefix(f"{spec.name}.").partition(".")[0]
    return model.get_submodule(f"{spec.name}.{child}")


def experts_per_token(model: nn.Module, spec: MoeLayerSpec) -> int:
    """K, from the router, else from the block around it (DBRX); 1 of a layer without router.

    Raises:
        UnsupportedArchitectureError: neither says.
    """
    router = router_of(model, spec)
    if router is None:
        return 1
    facts = facts_of(router).router
    if facts and facts.top_k:
        return getattr(router.config, facts.top_k) if isinstance(facts.top_k, str) else facts.top_k
    for module in (router, model.get_submodule(spec.name)):
        if isinstance(top_k := getattr(module, "top_k", None), int):
            return top_k
    raise UnsupportedArchitectureError(
        f"layer {spec.name}: a {class_key(router)} does not say how many experts a token is sent to"
    )
