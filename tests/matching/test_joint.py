from dataclasses import replace
from itertools import permutations

import pytest
import torch

from hf_moe_lmc.matching import GaugedLayer, align_layers
from hf_moe_lmc.matching.expert_order import gate_cost, order_margin
from hf_moe_lmc.matching.joint import JointTable, fill_until_certified
from hf_moe_lmc.moe import act
from hf_moe_lmc.symmetry import Permutation
from tests.layers import LAYER_KINDS, derangement
from tests.matching.matched import match_banks, match_layers_experts


@pytest.fixture(params=LAYER_KINDS)
def build(request):
    return LAYER_KINDS[request.param]


def noisy(layer, noise: float):
    generator = torch.Generator().manual_seed(7)
    experts = layer.experts.map(lambda t: t + noise * torch.randn(t.shape, generator=generator, dtype=t.dtype))
    return replace(layer, experts=experts)


def rotations(size: int) -> list[Permutation]:
    """Orders that have every pair of experts between them."""
    slots = torch.arange(size)
    return [Permutation((slots + shift) % size) for shift in range(size)]


def test_costs_are_least_squared_distances(build):
    """Those of the best unit moves, router rows included; bounds are below, and tighter with every step."""
    a, b = build(seed=0), build(seed=1)
    table = JointTable.of(*GaugedLayer.pair(a, b))
    orders = rotations(len(table.costs))
    table.solve(orders[0])
    bounds = []
    for _ in range(3):
        table.tighten()
        bounds.append(table.costs.clone())
    for order in orders:
        table.solve(order)
    assert all((lower <= higher).all() for lower, higher in zip(bounds, [*bounds[1:], table.costs + 1e-9], strict=True))
    assert (bounds[-1] > 0.1 * table.costs).all()
    x, y = a.in_gauge(), b.in_gauge()
    rows = torch.cdist(x.router.rows(), y.router.rows()).square()
    for i in range(len(table.costs)):
        for j in range(len(table.costs)):
            own = x.experts.map(lambda tensor, i=i: tensor[i : i + 1])
            other = y.experts.map(lambda tensor, j=j: tensor[j : j + 1])
            matched = other.permute_units(match_banks(own, other, a.group.unit_signs)).tensors()
            expected = sum((tensor - matched[name]).square().sum() for name, tensor in own.tensors().items())
            torch.testing.assert_close(table.costs[i, j], expected + rows[i, j])


def test_scrambled_siblings_are_certified_with_one_assignment_per_expert(build):
    layer = build()
    planted = derangement(layer)
    found = match_layers_experts(layer, act(planted, noisy(layer, 0.05)), "joint")
    assert found.order == planted.experts.inverse()
    assert found.certified
    assert len(found.pairs) == layer.experts.num_experts


def test_independent_experts_are_certified_too_if_the_budget_allows(build):
    a, b = build(seed=0), build(seed=1)
    found = match_layers_experts(a, b, "joint")
    assert found.certified
    everything = JointTable.of(*GaugedLayer.pair(a, b))
    for rotation in rotations(a.experts.num_experts):
        everything.solve(rotation)
    assert fill_until_certified(everything, found.order, a.group.expert_groups, budget=0)  # nothing is left to solve
    order = found.order.index
    rows = torch.arange(len(order))
    best = everything.costs[rows, order].sum()
    for seed in range(200):
        other = a.group.random_derangement(*a.symmetry_shape, generator=torch.Generator().manual_seed(seed)).experts
        assert everything.costs[rows, other.index].sum() >= best - 1e-9


def test_a_budget_that_runs_out_says_so(build):
    a, b = build(seed=0), build(seed=1)
    table = JointTable.of(*GaugedLayer.pair(a, b))
    first = Permutation.identity(a.experts.num_experts)
    assert not fill_until_certified(table, first, a.group.expert_groups, budget=a.experts.num_experts)
    assert len(table.pairs) == a.experts.num_experts


def test_rounding_proves_nothing():
    """Copies of one expert with next to no noise: bounds of float32 do not exclude the true partners."""
    layer = LAYER_KINDS["swiglu"](dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)

    def copies(tensor):
        return tensor[:1] + 3e-6 * torch.randn(tensor.shape, generator=generator)

    layer = replace(layer, experts=layer.experts.map(copies))
    planted = derangement(layer)
    for router in (layer.router, replace(layer.router, weight=torch.zeros_like(layer.router.weight))):
        frozen = replace(layer, router=router)
        found = align_layers(frozen, act(planted, frozen), "joint")
        assert found.symmetry == planted.inverse()
        assert found.distance_after == 0


def test_margin_is_that_of_the_second_best_order(build):
    a, b = build(seed=0), build(seed=1)
    table = -gate_cost(a.in_gauge().router, b.in_gauge().router)
    size, groups = len(table), a.group.expert_groups
    width = size // groups
    totals = sorted(
        table[torch.arange(size), list(order)].sum().item()
        for order in permutations(range(size))
        if all(len({order[i] // width for i in range(g, g + width)}) == 1 for g in range(0, size, width))
    )
    exchange = 2 * (totals[-1] / size - table.mean().item())
    best = match_layers_experts(a, b, "gate")
    assert best.margin == pytest.approx((totals[-1] - totals[-2]) / exchange)
    tied = torch.zeros(size, size)
    assert order_margin(tied, Permutation.identity(size), 1) == 0.0
