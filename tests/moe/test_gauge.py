"""The gauge: of all layers that differ by free scales and translations alone, one and the same."""

from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.moe import ExpertBank, MoeLayer, act
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


def norms(experts: ExpertBank) -> tuple[torch.Tensor, torch.Tensor]:
    up = experts.up_proj
    if experts.up_bias is not None:
        up = torch.cat([up, experts.up_bias[..., None]], dim=2)
    return up.norm(dim=2), experts.down_proj.norm(dim=1)


def test_the_function_stays(layer):
    assert not same_weights(layer.in_gauge(), layer)
    assert difference(layer, layer.in_gauge()) < 1e-12


def test_scales_do_not_count_and_norms_are_equal(layer):
    assert not same_weights(rescaled(layer), layer)
    torch.testing.assert_close(rescaled(layer).in_gauge().tensors(), layer.in_gauge().tensors())
    torch.testing.assert_close(*norms(layer.in_gauge().experts))
    fixed = replace(layer, group=replace(layer.group, unit_scale_degree=0))
    assert same_weights(replace(fixed.in_gauge(), router=layer.router, shared_experts=layer.shared_experts), layer)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_permuted_units_and_experts_are_scaled_alike_to_the_last_bit(layer, dtype):
    """So that a scrambled copy comes back to a distance of 0; in the widths at which vectors end."""
    for units in (5, 17, 40):
        for hidden in (13, 64, 129):
            bank = LAYER_KINDS["swiglu"](3, units, hidden, dtype=dtype).experts
            order = torch.randperm(units, generator=torch.Generator().manual_seed(0))
            moved = replace(bank, up_proj=bank.up_proj[:, order], down_proj=bank.down_proj[:, :, order])
            scales, others = bank.gauge_scales(1), moved.gauge_scales(1)
            assert torch.equal(scales.up[:, order], others.up)
            assert torch.equal(scales.down[:, order], others.down)


def test_relu_squared_has_degree_two():
    layer = LAYER_KINDS["mlp"]()
    layer = replace(layer, group=replace(layer.group, unit_scale_degree=2))
    other = replace(layer, experts=scaled_units(layer.experts, 2))
    torch.testing.assert_close(other.in_gauge().tensors(), layer.in_gauge().tensors())
    torch.testing.assert_close(*norms(layer.in_gauge().experts))


def test_factors_of_experts_go_into_down_proj():
    layer = LAYER_KINDS["swiglu with biases"]()
    factors = torch.linspace(-1.0, 2.0, 5, dtype=torch.float64)
    router = replace(layer.router, per_expert_scale=torch.full((5,), 3.0, dtype=torch.float64))
    layer = replace(layer, router=router, group=replace(layer.group, unit_scale_degree=1))
    other = replace(
        layer,
        router=replace(router, per_expert_scale=router.per_expert_scale / factors),
        experts=layer.experts.scale_outputs(factors),
    )
    torch.testing.assert_close(other.in_gauge().tensors(), layer.in_gauge().tensors())


def test_outputs_that_are_normalised():
    layer = LAYER_KINDS["swiglu"]()
    layer = replace(layer, group=replace(layer.group, unit_scale_degree=1, expert_output_scale=True))
    factors = torch.linspace(0.2, 5.0, 5, dtype=torch.float64)
    other = replace(rescaled(layer), experts=rescaled(layer).experts.scale_outputs(factors))
    torch.testing.assert_close(other.in_gauge().tensors(), layer.in_gauge().tensors())


def test_the_router_of_one_expert():
    layer = LAYER_KINDS["swiglu with biases"]()
    layer = replace(layer, group=replace(layer.group, router_scale=True))
    router = replace(layer.router, weight=7 * layer.router.weight, bias=7 * layer.router.bias)
    torch.testing.assert_close(replace(layer, router=router).in_gauge().tensors(), layer.in_gauge().tensors())


def test_units_that_compute_nothing_are_zero():
    """Whatever their other weights, so that these do not count; nothing is divided by nothing."""
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
        gauged = layer.in_gauge()
        assert all(tensor.isfinite().all() for tensor in gauged.tensors().values())
        assert not gauged.experts.up_proj[2].any()
        assert not gauged.experts.down_proj[2].any()
        assert gauged.experts.up_proj[[0, 1, 3, 4]].any(dim=2).all()
        assert difference(replace(layer, group=replace(layer.group, expert_output_scale=False)), layer) == 0


def test_a_symmetry_commutes_with_it(layer):
    """The gauge of a permuted layer is the permuted gauge."""
    symmetry = derangement(layer)
    torch.testing.assert_close(act(symmetry, layer).in_gauge().tensors(), act(symmetry, layer.in_gauge()).tensors())
