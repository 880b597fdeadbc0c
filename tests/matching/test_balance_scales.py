"""Free scales of units, experts and routers: matched away, never written."""

from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.matching import align_layers
from hf_moe_lmc.moe import MoeLayer, act
from tests.layers import LAYER_KINDS, derangement, naive_forward, same_weights, scaled_units

RELU = {"mlp": 1, "mlp, shared experts": 1}
GATED = {"swiglu": 1, "swiglu, shared experts": 1, "swiglu with biases": 1, "grouped sigmoid": 1}


@pytest.fixture(params=RELU | GATED)
def layer(request) -> MoeLayer:
    layer = LAYER_KINDS[request.param]()
    shared = 1 if layer.shared_experts else 0
    return replace(layer, group=replace(layer.group, unit_scale_degree=1, shared_unit_scale_degree=shared))


def rescaled(layer: MoeLayer, seed: int = 5) -> MoeLayer:
    shared = layer.shared_experts
    return replace(
        layer,
        experts=scaled_units(layer.experts, 1, seed),
        shared_experts=scaled_units(shared, 1, seed) if shared else None,
    )


def difference(a: MoeLayer, b: MoeLayer) -> float:
    tokens = torch.randn(11, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = naive_forward(a, tokens)
    return float((naive_forward(b, tokens) - expected).abs().max() / expected.abs().max())


def test_the_balanced_layer_computes_the_same(layer):
    assert not same_weights(layer.balanced(), layer)
    assert difference(layer, layer.balanced()) < 1e-12


def test_scales_do_not_count_in_it(layer):
    assert not same_weights(rescaled(layer), layer)
    torch.testing.assert_close(rescaled(layer).balanced().tensors(), layer.balanced().tensors())


@pytest.mark.parametrize("expert_order", ["gate", "gram", "joint"])
def test_a_copy_rescaled_and_permuted_is_matched_back(layer, expert_order):
    planted = derangement(layer)
    other = act(planted, rescaled(layer))
    found = align_layers(layer, other, expert_order, balance_scales=True)
    assert found.symmetry == planted.inverse()
    # The scales stay: what comes back is the rescaled copy, bit for bit.
    assert same_weights(act(found.symmetry, other), rescaled(layer))
    assert found.distance_after > 0.1


def test_control_without_balancing_units_are_mismatched():
    """Large units of one copy go to large units of the other, whatever they compute."""
    layer = LAYER_KINDS["swiglu"](F_=40)
    layer = replace(layer, group=replace(layer.group, unit_scale_degree=1))
    factor = torch.linspace(-5, 5, 40, dtype=torch.float64).exp2()

    def scaled(factor: torch.Tensor) -> MoeLayer:
        experts = layer.experts
        up, down = experts.up_proj * factor[:, None], experts.down_proj / factor
        return replace(layer, experts=replace(experts, up_proj=up, down_proj=down))

    planted = derangement(layer)
    reference, other = scaled(factor), act(planted, scaled(1 / factor))
    assert align_layers(reference, other, balance_scales=True).symmetry == planted.inverse()
    assert align_layers(reference, other).symmetry.units != planted.inverse().units


def test_relu_squared_has_degree_two():
    layer = LAYER_KINDS["mlp"]()
    layer = replace(layer, group=replace(layer.group, unit_scale_degree=2))
    other = replace(layer, experts=scaled_units(layer.experts, 2))
    torch.testing.assert_close(other.balanced().tensors(), layer.balanced().tensors())
    balanced = layer.balanced().experts
    up = torch.cat([balanced.up_proj, balanced.up_bias[..., None]], dim=2).norm(dim=2)
    torch.testing.assert_close(up, balanced.down_proj.norm(dim=1))


def test_factors_of_experts_go_into_down_proj():
    layer = LAYER_KINDS["swiglu"]()
    factors = torch.linspace(-1.0, 2.0, 5, dtype=torch.float64)
    router = replace(layer.router, per_expert_scale=torch.full((5,), 3.0, dtype=torch.float64))
    layer = replace(layer, router=router)
    other = replace(
        layer,
        router=replace(router, per_expert_scale=router.per_expert_scale / factors),
        experts=layer.experts.scale_outputs(factors),
    )
    torch.testing.assert_close(other.balanced().tensors(), layer.balanced().tensors())


def test_outputs_that_are_normalised():
    layer = LAYER_KINDS["swiglu"]()
    layer = replace(layer, group=replace(layer.group, unit_scale_degree=1, expert_output_scale=True))
    factors = torch.linspace(0.2, 5.0, 5, dtype=torch.float64)
    other = replace(rescaled(layer), experts=rescaled(layer).experts.scale_outputs(factors))
    torch.testing.assert_close(other.balanced().tensors(), layer.balanced().tensors())


def test_the_router_of_one_expert():
    layer = LAYER_KINDS["swiglu with biases"]()
    layer = replace(layer, group=replace(layer.group, router_scale=True))
    router = replace(layer.router, weight=7 * layer.router.weight, bias=7 * layer.router.bias)
    torch.testing.assert_close(replace(layer, router=router).balanced().tensors(), layer.balanced().tensors())


def test_zero_weights_stay_zero():
    """Nothing is divided by nothing."""
    for name in ("up_proj", "down_proj"):
        layer = LAYER_KINDS["swiglu"]()
        weight = getattr(layer.experts, name).clone()
        weight[2] = 0
        layer = replace(
            layer,
            router=replace(layer.router, weight=torch.zeros_like(layer.router.weight)),
            experts=replace(layer.experts, **{name: weight}),
            group=replace(layer.group, unit_scale_degree=1, expert_output_scale=True, router_scale=True),
        )
        balanced = layer.balanced()
        assert all(tensor.isfinite().all() for tensor in balanced.tensors().values())
        assert not getattr(balanced.experts, name)[2].any()
