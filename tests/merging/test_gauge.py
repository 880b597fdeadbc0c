"""Free scales of the other layer: taken from the reference before a mean, so that they do not matter to it."""

from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.matching import align_layers
from hf_moe_lmc.merging import repaired_layer
from hf_moe_lmc.merging.gauge import in_gauge_of
from hf_moe_lmc.moe import MoeLayer, act
from tests.layers import LAYER_KINDS, derangement, naive_forward, planted_scales, same_weights

KINDS = [(kind, degree) for kind in LAYER_KINDS for degree in (1, 2)]


def build(kind: str, degree: int, seed: int = 0, dtype=torch.float64) -> MoeLayer:
    layer = LAYER_KINDS[kind](seed=seed, dtype=dtype)
    shared = degree if layer.shared_experts else 0
    return replace(layer, group=replace(layer.group, unit_scale_degree=degree, shared_unit_scale_degree=shared))


def related(layer: MoeLayer, noise: float = 1.0) -> MoeLayer:
    generator = torch.Generator().manual_seed(7)
    return layer.with_tensors(
        {n: x + noise * torch.randn(x.shape, generator=generator).to(x) for n, x in layer.tensors().items()}
    )


def merged(reference: MoeLayer, other: MoeLayer) -> MoeLayer:
    aligned = act(align_layers(reference, other, "joint").symmetry, other)
    return repaired_layer([reference, in_gauge_of(reference, aligned)], (0.5, 0.5))


@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.0, 3.0])
@pytest.mark.parametrize(("kind", "degree"), KINDS)
def test_planted_scales_and_signs_do_not_change_a_merge(kind, degree, sigma):
    layer = build(kind, degree)
    other = related(layer)
    expected = merged(layer, other)
    moved = planted_scales(act(derangement(other), other), sigma)
    torch.testing.assert_close(merged(layer, moved).tensors(), expected.tensors())
    # Control: averaged as it is, the merge is another one.
    aligned = act(align_layers(layer, moved, "joint").symmetry, moved)
    plain = repaired_layer([layer, aligned], (0.5, 0.5)).experts.up_proj
    assert (plain - expected.experts.up_proj).abs().max() > 0.05


@pytest.mark.parametrize("kind", ["mlp", "mlp, shared experts", "swiglu", "swiglu with biases", "grouped sigmoid"])
def test_the_function_stays_and_the_scales_are_those_of_the_reference(kind):
    layer = build(kind, 1)
    other = planted_scales(related(layer), 2.0)
    rescaled = in_gauge_of(layer, other)
    tokens = torch.randn(11, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = naive_forward(other, tokens)
    torch.testing.assert_close(naive_forward(rescaled, tokens), expected, rtol=1e-9, atol=1e-9 * expected.abs().max())
    for bank, wanted in zip(rescaled.gauge_scales(), layer.gauge_scales(), strict=True):
        if bank is not None:
            torch.testing.assert_close(bank.up, wanted.up, rtol=2**-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_siblings_and_copies_stay_bit_for_bit(dtype):
    layer = LAYER_KINDS["swiglu, shared experts"](F_=24, H=96, dtype=dtype)
    group = replace(layer.group, unit_scale_degree=1, shared_unit_scale_degree=1, router_scale=True)
    layer = replace(layer, group=group)
    for other in (layer, related(layer, 0.01)):
        rescaled = in_gauge_of(layer, other)
        assert same_weights(rescaled, other)
        assert rescaled.experts.up_proj is other.experts.up_proj
    # Control: scales that matter are taken, in more bits than the layer has.
    rescaled = in_gauge_of(layer, planted_scales(layer, 1.0))
    assert rescaled.experts.gate_proj.dtype == dtype
    assert not same_weights(rescaled.to(dtype), planted_scales(layer, 1.0).to(dtype))


def test_units_that_compute_nothing_stay():
    layer = build("swiglu", 1)
    experts = layer.experts
    dead = replace(layer, experts=replace(experts, down_proj=experts.down_proj.index_fill(2, torch.tensor([3]), 0.0)))
    for reference, other in ((layer, dead), (dead, layer)):
        rescaled = in_gauge_of(reference, planted_scales(other, 1.0))
        assert all(tensor.isfinite().all() for tensor in rescaled.tensors().values())
        assert torch.equal(rescaled.experts.up_proj[:, 3], planted_scales(other, 1.0).experts.up_proj[:, 3])


def test_factors_between_router_and_experts():
    layer, factors = build("swiglu", 1), torch.tensor([1.0, 2.0, -0.5, 1.0, 3.0], dtype=torch.float64)
    layer = replace(layer, router=replace(layer.router, per_expert_scale=torch.full((5,), 3.0, dtype=torch.float64)))
    other = related(layer)
    router = replace(other.router, per_expert_scale=layer.router.per_expert_scale / factors)
    moved = replace(other, router=router, experts=other.experts.scale_outputs(factors))
    same = replace(other, router=replace(other.router, per_expert_scale=layer.router.per_expert_scale))
    torch.testing.assert_close(in_gauge_of(layer, moved).tensors(), in_gauge_of(layer, same).tensors())


def test_outputs_and_routers_whose_norm_is_free():
    layer = build("swiglu with biases", 1)
    layer = replace(layer, group=replace(layer.group, expert_output_scale=True, router_scale=True))
    other = related(layer)
    factors = torch.linspace(0.2, 5.0, 5, dtype=torch.float64)
    router = replace(other.router, weight=7 * other.router.weight, bias=7 * other.router.bias)
    moved = replace(other, router=router, experts=other.experts.scale_outputs(factors))
    torch.testing.assert_close(in_gauge_of(layer, moved).tensors(), in_gauge_of(layer, other).tensors())
