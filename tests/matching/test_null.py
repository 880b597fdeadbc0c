"""Similarity beside chance: of related experts far above it, of unrelated ones as the null says."""

from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.matching import NullTest, expert_similarities, matrix_similarity, router_similarities
from hf_moe_lmc.matching.null import _involutions
from hf_moe_lmc.moe import MoeLayer, act
from hf_moe_lmc.symmetry import Permutation
from tests.layers import LAYER_KINDS, derangement, scaled_units

SIZES = {"E": 6, "F_": 24, "H": 32}
LOOK = {"units": 24, "hidden": 32}


@pytest.fixture(params=LAYER_KINDS)
def build(request):
    return lambda seed=0, **sizes: LAYER_KINDS[request.param](**SIZES | sizes, seed=seed, dtype=torch.float32)


def noisy(layer: MoeLayer, noise: float, seed: int = 7) -> MoeLayer:
    generator = torch.Generator().manual_seed(seed)
    return layer.with_tensors(
        {name: x + noise * torch.randn(x.shape, generator=generator) for name, x in layer.tensors().items()}
    )


def everyone(layer: MoeLayer, other: MoeLayer) -> list[tuple[int, int]]:
    return [(i, j) for i in range(layer.experts.num_experts) for j in range(other.experts.num_experts)]


@pytest.mark.parametrize("size", [2, 7, 32])
def test_the_null_permutes_the_hidden_axis_by_involutions(size):
    orders = _involutions(size)
    assert torch.equal(orders.gather(1, orders), orders[:1].expand_as(orders))
    assert torch.equal(orders[0], torch.arange(size))
    assert ((orders[1:] == orders[0]).sum(dim=1) == size % 2).all()


def test_partners_stand_out_and_all_others_do_not(build):
    layer = build()
    planted = derangement(layer)
    test = expert_similarities(layer, act(planted, noisy(layer, 0.5)), everyone(layer, layer), **LOOK)
    z = test.z.view(6, 6)
    partners = torch.zeros(6, 6, dtype=torch.bool)
    partners[torch.arange(6), planted.experts.inverse().index] = True
    assert (z[partners] > 10).all()
    assert (z[~partners].abs() < 6).all()


def test_without_a_relation_z_is_distributed_as_chance_says(build):
    """Its mean is 0 and its variance that of Student's t with 15 degrees of freedom, 1.15, but for the sampling."""
    pairs = [(e, e) for e in range(6)]
    scores = torch.cat([expert_similarities(build(2 * s), build(2 * s + 1), pairs, **LOOK).z for s in range(20)])
    assert abs(scores.mean()) < 0.4
    assert 0.7 < scores.std() < 1.4
    assert scores.max() < 6


def test_neither_symmetries_nor_the_direction_matter(build):
    a, b = build(0), noisy(build(0), 1.0)
    group = replace(a.group, unit_scale_degree=1, shared_unit_scale_degree=1)
    a, b = replace(a, group=group), replace(b, group=group)
    pairs = everyone(a, b)
    test = expert_similarities(a, b, pairs, **LOOK)
    back = expert_similarities(b, a, [(j, i) for i, j in pairs], **LOOK)
    torch.testing.assert_close(back.values, test.values)
    torch.testing.assert_close(back.draws, test.draws)
    units = replace(derangement(b), experts=Permutation.identity(6))
    moved = act(units, replace(b, experts=scaled_units(b.experts, 1)))
    again = expert_similarities(a, moved, pairs, **LOOK)
    torch.testing.assert_close(again.values, test.values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again.draws, test.draws, rtol=1e-4, atol=1e-5)
    assert (test.values - expert_similarities(a, noisy(b, 1.0, 8), pairs, **LOOK).values).abs().max() > 0.01


def test_a_sample_of_large_experts_tells_the_same(build):
    """A few units, in a few coordinates, of other numbers of experts and units."""
    layer = build(F_=160, H=96)
    fewer = noisy(layer, 0.5)
    order = torch.tensor([4, 2, 5])
    fewer = replace(fewer, router=None, experts=fewer.experts.map(lambda tensor: tensor[order]))
    z = expert_similarities(layer, fewer, everyone(layer, fewer), units=4, hidden=24).z.view(6, 3)
    assert (z[order, torch.arange(3)] > 10).all()
    assert (z > 6).sum() == 3


def test_shared_experts():
    layer = LAYER_KINDS["swiglu, shared experts"](**SIZES, dtype=torch.float32)
    other = LAYER_KINDS["swiglu, shared experts"](**SIZES, seed=1, dtype=torch.float32)
    assert expert_similarities(layer, act(derangement(layer), layer), [(0, 0)], **LOOK, shared=True).z > 10
    assert expert_similarities(layer, other, [(0, 0)], **LOOK, shared=True).z.abs() < 6


def test_the_gain_of_an_order():
    """Over the best order that shares no pair with it; of each draw, its own best."""
    values = torch.tensor([[3.0, 0.0, 1.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
    draws = torch.stack([values.roll(1, dims=1) / (k + 2) for k in range(4)])
    gain = NullTest(values, draws).order_gain(Permutation.identity(3))
    assert gain.values == 9 - 1
    torch.testing.assert_close(gain.draws, 8 / torch.arange(2.0, 6.0, dtype=torch.float64))
    wrong = NullTest(values, draws).order_gain(Permutation(torch.tensor([1, 2, 0])))
    assert wrong.values == 0 - 9


def test_router_rows_tell_an_order_and_unrelated_ones_do_not(build):
    layer, other = build(), build(1)
    planted = derangement(layer)
    order = planted.experts.inverse()
    assert router_similarities(layer, act(planted, noisy(layer, 0.3))).order_gain(order).z > 10
    assert abs(router_similarities(layer, other).order_gain(order).z) < 15
    assert router_similarities(replace(layer, router=None), other) is None


def test_experts_without_weights():
    """Equal to one another, and to no other."""
    layer = LAYER_KINDS["swiglu"](**SIZES, dtype=torch.float32)
    empty = replace(layer, experts=layer.experts.map(lambda tensor: tensor.index_fill(0, torch.tensor([0, 1]), 0.0)))
    z = expert_similarities(empty, empty, [(0, 0), (0, 1), (0, 2), (2, 0), (2, 2)], **LOOK).z
    assert (z[:2] > 6).all()
    assert (z[2:4] == 0).all()
    assert z[4] > 6


@pytest.mark.parametrize("shape", [(8, 64), (64, 8)])
def test_matrices_as_they_stand(shape):
    generator = torch.Generator().manual_seed(0)
    a, b, noise = (torch.randn(shape, generator=generator) for _ in range(3))
    z = matrix_similarity(a, a + noise).z.item()
    assert z > 6
    assert z == pytest.approx(matrix_similarity(a + noise, a).z.item(), rel=1e-3)
    assert abs(matrix_similarity(a, b).z.item()) < 6
