"""Symmetry groups of layers, from the facts of their classes."""

from typing import NamedTuple

from torch import nn

from hf_moe_lmc.errors import UnsupportedArchitectureError
from hf_moe_lmc.moe import SymmetryGroup

from .families import ExpertFacts, Gate, RouterFacts, class_key, facts_of
from .layouts import ExpertLayout, ListedExperts, ProductKeyExperts


class UnitFreedom(NamedTuple):
    """Whether signs of units are free, and the degree of their free scales; see `SymmetryGroup`."""

    signs: bool
    scale_degree: int


FREEDOM: dict[Gate, UnitFreedom] = {
    "gated": UnitFreedom(True, 1),
    "odd": UnitFreedom(True, 0),
    "offset": UnitFreedom(False, 0),
}

# Activations without gate that are homogeneous, and their degree.
HOMOGENEOUS = {"ReLU": 1, "ReLUSquaredActivation": 2}


def dense_group(name: str, mlp: nn.Module) -> SymmetryGroup:
    """The symmetries of a layer without router, which is the MLP of module name `name`.

    Raises:
        UnsupportedArchitectureError: its class is not known.
    """
    units = _mlp_units(name, mlp)
    return SymmetryGroup(fixed_experts=True, unit_signs=units.signs, unit_scale_degree=units.scale_degree)


def routed_group(
    router_name: str,
    router: nn.Module,
    experts: ExpertLayout,
    shared: ExpertLayout | None,
    modules: dict[str, nn.Module],
) -> SymmetryGroup:
    """The symmetries of a layer with router.

    Args:
        router_name: module name of the router, for errors.
        router: the module with facts about it: itself, or the block where it is a plain linear.
        experts, shared: layouts of the routed and of the shared experts.
        modules: all modules of the model by name.

    Raises:
        UnsupportedArchitectureError: the class of the router, or a gate, is not known.
    """
    module = modules[experts.name]
    if isinstance(experts, ListedExperts):
        units = _mlp_units(experts.experts[0].name, modules[experts.experts[0].name])
    else:
        units = _expert_units(experts.name, module)
    shared_units = _mlp_units(shared.name, modules[shared.name]) if shared else UnitFreedom(False, 0)
    stated, facts = facts_of(module).experts or ExpertFacts(), router_facts(router_name, router)
    scores = getattr(router, facts.scores_attribute) if facts.scores_attribute else facts.scores
    shift_free, groups = scores == "softmax" and not facts.further_rows, _expert_groups(router, facts)
    renormalises = facts.renormalises or bool(getattr(router, "norm_topk_prob", False))
    return SymmetryGroup(
        expert_groups=groups,
        fixed_experts=stated.fixed_experts,
        fixed_units=stated.fixed_units,
        product_keys=isinstance(experts, ProductKeyExperts),
        router_translation=shift_free,
        # The weight of one expert is 1 whatever its score, and the largest score stays the largest.
        router_scale=shift_free and renormalises and getattr(router, "top_k", None) == 1 and groups == 1,
        selection_bias_constant=facts.selection_bias_constant and not facts.further_rows,
        unit_signs=units.signs,
        unit_scale_degree=units.scale_degree,
        expert_output_scale=stated.expert_output_scale,
        shared_unit_signs=shared_units.signs,
        shared_unit_scale_degree=shared_units.scale_degree,
        further_rows=facts.further_rows,
    )


def router_facts(name: str, router: nn.Module) -> RouterFacts:
    """The facts of `router` (module name `name`).

    Raises:
        UnsupportedArchitectureError: its class is not known.
    """
    facts = facts_of(router).router
    if facts is None:
        raise UnsupportedArchitectureError(
            f"router {name}: a {class_key(router)}, whose symmetries are not known; see hf_moe_lmc.register_adapter"
        )
    return facts


def _expert_groups(router: nn.Module, facts: RouterFacts) -> int:
    """The number of groups of neighbouring experts that routing is limited to; 1 where it is not."""
    groups = getattr(router, facts.expert_groups, None) or 1
    chosen = getattr(router, "topk_group", None) or 1
    return 1 if getattr(router, "topk_method", None) == "greedy" or chosen >= groups else groups


def _expert_units(name: str, experts: nn.Module) -> UnitFreedom:
    facts, gate = facts_of(experts).experts, getattr(type(experts), "_apply_gate", None)
    if (facts is None or facts.gate is None) and getattr(gate, "__module__", None) == "transformers.integrations.moe":
        return FREEDOM["gated"]
    return _unit_freedom(f"experts {name}", facts.gate if facts else None, experts)


def _mlp_units(name: str, mlp: nn.Module) -> UnitFreedom:
    facts = facts_of(mlp).mlp
    return _unit_freedom(f"MLP {name}", facts.gate if facts else None, mlp)


def _unit_freedom(name: str, gate: Gate | None, module: nn.Module) -> UnitFreedom:
    if gate is None:
        raise UnsupportedArchitectureError(
            f"{name}: a {class_key(module)}, whose gate is not known; see hf_moe_lmc.register_adapter"
        )
    if gate != "ungated":
        return FREEDOM[gate]
    activations = (getattr(module, name, None) for name in ("act_fn", "act", "activation_fn"))
    return UnitFreedom(False, max(HOMOGENEOUS.get(type(activation).__name__, 0) for activation in activations))
