import pytest
import torch

from hf_moe_lmc.matching import align_layers, match_experts
from hf_moe_lmc.matching.expert_order import gate_cost, order_margin
from hf_moe_lmc.matching.joint import JointTable, fill_until_certified
from hf_moe_lmc.moe import act
from hf_moe_lmc.symmetry import Permutation
from tests.layers import LAYER_KINDS, derangement


@pytest.fixture(params=LAYER_KINDS)
def build(request):
    return LAYER_KINDS[request.param]


def noisy(layer, noise: float):
    generator = torch.Generator().manual_seed(7)
    return type(layer)(
        layer.router,
        layer.experts.map(lambda t: t + noise * torch.randn(t.shape, generator=generator, dtype=t.dtype)),
        layer.shared_experts,
        layer.group,
    )


def test_scrambled_siblings_are_certified_with_one_assignment_per_expert(build):
    layer = build()
    planted = derangement(layer)
    found = match_experts(layer, act(planted, noisy(layer, 0.05)), "joint")
    assert found.order == planted.experts.inverse()
    assert found.certified
    assert len(found.pairs) == layer.experts.num_experts


def test_independent_experts_are_certified_too_if_the_budget_allows(build):
    a, b = build(seed=0), build(seed=1)
    found = match_experts(a, b, "joint")
    assert found.certified
    everything = JointTable.bounded(a.in_gauge(), b.in_gauge())
    for pair in torch.cartesian_prod(*[torch.arange(a.experts.num_experts)] * 2).tolist():
        everything.solve(*pair)
    from_all = fill_until_certified(everything, found.order, a.group.expert_groups, budget=0)
    assert from_all  # nothing is left to solve: the order on all exact values is the one that bounds and pruning found
    order = found.order.index
    rows = torch.arange(len(order))
    best = everything.values[rows, order].sum()
    for seed in range(200):
        other = a.group.random_derangement(*a.symmetry_shape, generator=torch.Generator().manual_seed(seed)).experts
        assert everything.values[rows, other.index].sum() <= best + 1e-9


def test_a_budget_that_runs_out_says_so(build):
    a, b = (x.in_gauge() for x in (build(seed=0), build(seed=1)))
    table = JointTable.bounded(a, b)
    first = Permutation.identity(a.experts.num_experts)
    assert not fill_until_certified(table, first, a.group.expert_groups, budget=a.experts.num_experts)
    assert len(table.pairs) == a.experts.num_experts


def test_auto_asks_the_router_where_it_is_clear_and_the_experts_where_not(build):
    layer = build()
    planted = derangement(layer)
    moved = act(planted, noisy(layer, 0.05))
    assert match_experts(layer, moved, "auto").method == "gate"
    # Routers of another model tell nothing: gate errs, auto does not.
    stranger = build(seed=5).router
    misled = type(moved)(stranger, moved.experts, moved.shared_experts, moved.group)
    assert match_experts(layer, misled, "auto").order == planted.experts.inverse()
    assert match_experts(layer, misled, "auto").method == "joint"
    assert match_experts(layer, misled, "gate").order != planted.experts.inverse()


def test_margin_is_that_of_the_second_best_order(build):
    from itertools import permutations

    a, b = (x.in_gauge() for x in (build(seed=0), build(seed=1)))
    table = -gate_cost(a.router, b.router)
    size, groups = len(table), a.group.expert_groups
    width = size // groups
    totals = sorted(
        table[torch.arange(size), list(order)].sum().item()
        for order in permutations(range(size))
        if all(len({order[i] // width for i in range(g, g + width)}) == 1 for g in range(0, size, width))
    )
    exchange = 2 * (totals[-1] / size - table.mean().item())
    best = match_experts(a, b, "gate")
    assert best.margin == pytest.approx((totals[-1] - totals[-2]) / exchange)
    tied = torch.zeros(size, size)
    assert order_margin(tied, Permutation.identity(size), 1) == 0.0


def test_evidence_says_what_was_done(build):
    layer = build()
    planted = derangement(layer)
    evidence = align_layers(layer, act(planted, noisy(layer, 0.05)), "joint").evidence
    assert evidence.expert_method == "joint"
    assert evidence.certified
    assert evidence.solved_pairs == layer.experts.num_experts
    assert evidence.fixed_experts == 0
    assert evidence.reduction > 0.9
    assert evidence.order_gain > 0.5
    assert 0 <= evidence.gap < 1e-9
    assert evidence.unit_margin_median > 0
    untouched = align_layers(layer, layer, "auto").evidence
    assert untouched.fixed_experts == untouched.fixed_units == 1
