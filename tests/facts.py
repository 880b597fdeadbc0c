"""Rewrites that leave the function of a layer alone where its `SymmetryGroup` says so, and change it elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from hf_moe_lmc.moe import ExpertBank, MoeLayer, SymmetryGroup
from hf_moe_lmc.symmetry import Permutation, SignedPermutation
from tests.layers import scaled_units

Move = Callable[[MoeLayer], MoeLayer]


def _translated(layer: MoeLayer) -> MoeLayer:
    """One vector added to the router rows of all routed experts."""
    weight = layer.router.weight
    shift = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(3)).to(weight)
    return replace(layer, router=replace(layer.router, weight=weight + shift))


def _router_scaled(layer: MoeLayer) -> MoeLayer:
    router = layer.router
    bias = None if router.bias is None else 3 * router.bias
    return replace(layer, router=replace(router, weight=3 * router.weight, bias=bias))


def _biases_shifted(layer: MoeLayer) -> MoeLayer:
    return replace(layer, router=replace(layer.router, selection_bias=layer.router.selection_bias + 2.0))


def _groups_broken(layer: MoeLayer) -> MoeLayer:
    """The experts dealt out to the groups in turn."""
    order = torch.arange(layer.experts.num_experts).reshape(-1, layer.group.expert_groups).T.flatten()
    return _experts_moved(layer, Permutation(order))


def _experts_reversed(layer: MoeLayer) -> MoeLayer:
    return _experts_moved(layer, Permutation(torch.arange(layer.experts.num_experts).flip(0)))


def _experts_moved(layer: MoeLayer, order: Permutation) -> MoeLayer:
    return replace(layer, router=layer.router.permute_experts(order), experts=layer.experts.permute_experts(order))


def _units_reversed(layer: MoeLayer) -> MoeLayer:
    experts, units, *_ = layer.symmetry_shape
    order = Permutation(torch.arange(units).flip(0).repeat(experts, 1))
    return replace(layer, experts=layer.experts.permute_units(SignedPermutation.unsigned(order)))


def _second_keys_reversed(layer: MoeLayer) -> MoeLayer:
    """The second keys and, in every slot, the units that they choose; the first keys stay."""
    first, second = layer.router.weight.chunk(2, dim=1)
    return replace(_units_reversed(layer), router=replace(layer.router, weight=torch.cat([first, second.flip(0)], 1)))


def _flipped(bank: ExpertBank) -> ExpertBank:
    order = Permutation.identity(bank.num_experts, bank.num_units)
    return bank.permute_units(SignedPermutation(order, -torch.ones_like(order.index, dtype=torch.int8)))


def _scales_exchanged(layer: MoeLayer) -> MoeLayer:
    """Half of every factor moved from the router into the expert."""
    factors = torch.linspace(0.5, 2.0, layer.experts.num_experts).to(layer.router.per_expert_scale)
    scale = layer.router.per_expert_scale / factors
    return replace(
        layer, router=replace(layer.router, per_expert_scale=scale), experts=layer.experts.scale_outputs(factors)
    )


def _outputs_scaled(layer: MoeLayer) -> MoeLayer:
    factors = torch.linspace(0.5, 2.0, layer.experts.num_experts).to(layer.experts.down_proj)
    return replace(layer, experts=layer.experts.scale_outputs(factors))


@dataclass(frozen=True)
class Fact:
    """A rewrite, the layers that it can be done to, and those of them whose function it must leave alone.

    It must change the function of all others.
    """

    move: Move
    applies: Callable[[MoeLayer], bool]
    admits: Callable[[SymmetryGroup], bool]


FACTS = {
    "a router translation": Fact(
        _translated, lambda layer: layer.router is not None, lambda group: group.router_translation
    ),
    "a router scale": Fact(_router_scaled, lambda layer: layer.router is not None, lambda group: group.router_scale),
    "a selection bias constant": Fact(
        _biases_shifted,
        # Where it is not claimed it may still hold by chance, so there is no control.
        lambda layer: (
            layer.router is not None and layer.router.selection_bias is not None and layer.group.selection_bias_constant
        ),
        lambda group: True,
    ),
    "an order that breaks groups": Fact(
        _groups_broken, lambda layer: layer.group.expert_groups > 1, lambda group: False
    ),
    "an order of fixed experts": Fact(
        _experts_reversed, lambda layer: layer.router is not None and layer.group.fixed_experts, lambda group: False
    ),
    "an order of fixed units": Fact(_units_reversed, lambda layer: not layer.group.unit_order, lambda group: False),
    "an order of the second keys": Fact(
        _second_keys_reversed, lambda layer: layer.group.product_keys, lambda group: False
    ),
    "signs of units": Fact(
        lambda layer: replace(layer, experts=_flipped(layer.experts)),
        lambda layer: layer.experts.gate_proj is not None,
        lambda group: group.unit_signs,
    ),
    "scales of units": Fact(
        lambda layer: replace(layer, experts=scaled_units(layer.experts, layer.group.unit_scale_degree or 1)),
        lambda layer: True,
        lambda group: group.unit_scale_degree > 0,
    ),
    "signs of shared units": Fact(
        lambda layer: replace(layer, shared_experts=_flipped(layer.shared_experts)),
        lambda layer: layer.shared_experts is not None and layer.shared_experts.gate_proj is not None,
        lambda group: group.shared_unit_signs,
    ),
    "scales of shared units": Fact(
        lambda layer: replace(
            layer, shared_experts=scaled_units(layer.shared_experts, layer.group.shared_unit_scale_degree or 1)
        ),
        lambda layer: layer.shared_experts is not None,
        lambda group: group.shared_unit_scale_degree > 0,
    ),
    "scales of expert outputs": Fact(
        _outputs_scaled, lambda layer: layer.router is not None, lambda group: group.expert_output_scale
    ),
    "scales between router and experts": Fact(
        _scales_exchanged,
        lambda layer: layer.router is not None and layer.router.per_expert_scale is not None,
        lambda group: True,
    ),
}
