from dataclasses import replace
from itertools import permutations, product

import pytest
import torch

from hf_moe_lmc.errors import IncompatiblePairError
from hf_moe_lmc.matching import align_layers, layer_distance
from hf_moe_lmc.moe import act
from hf_moe_lmc.symmetry import Permutation
from tests.layers import LAYER_KINDS, SOFTMAX, derangement, same_weights

ORDERS = ["gate", "gram", "joint", "auto"]


@pytest.fixture(params=LAYER_KINDS)
def build(request):
    return LAYER_KINDS[request.param]


def squares(a: torch.Tensor | None, b: torch.Tensor | None) -> float:
    return 0.0 if a is None or b is None else (a - b).square().sum().item()


def unit_table(a, b, i: int, j: int, sign: int) -> list[list[float]]:
    """Squared distance of unit f of a's expert i to `sign` times unit g of b's expert j, by the loop."""

    def unit(x, e: int, f: int, sign: int) -> list[torch.Tensor]:
        changing = [x.up_proj[e, f], x.down_proj[e, :, f]] + ([] if x.up_bias is None else [x.up_bias[e, f]])
        kept = ([] if x.gate_proj is None else [x.gate_proj[e, f]]) + (
            [] if x.gate_bias is None else [x.gate_bias[e, f]]
        )
        return [sign * part for part in changing] + kept

    def distance(f: int, g: int) -> float:
        pairs = zip(unit(a, i, f, 1), unit(b, j, g, sign), strict=True)
        return sum(squares(x, y) for x, y in pairs)

    return [[distance(f, g) for g in range(a.num_units)] for f in range(a.num_units)]


def all_moves(units: int, signs: bool) -> list[list[tuple[int, int]]]:
    """Every (signed) order of units, as [(sign, unit), ...]."""
    choices = list(product((1, -1) if signs else (1,), repeat=units))
    return [list(zip(flips, order, strict=True)) for order in permutations(range(units)) for flips in choices]


def all_orders(experts: int, groups: int) -> list[tuple[int, ...]]:
    """Every order of experts that maps groups of neighbours to groups."""
    size = experts // groups
    orders = permutations(range(experts))
    return [
        o for o in orders if all(len({o[i] // size for i in range(g, g + size)}) == 1 for g in range(0, experts, size))
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("experts", "units"), [(3, 3), (4, 2)])
def test_joint_equals_brute_force_over_the_whole_group(build, seed, experts, units):
    """Every expert order that the layer admits x every signed order of every expert's units x that of shared units.

    None of it goes through the code under test. With E = F = 3: 3! x (3!)^3 x 3!, and 48 for 6 with signs.
    """
    a, b = (build(experts, units, 4, seed=2 * seed + i) for i in range(2))
    group = replace(a.group, expert_groups=2 if a.group.expert_groups > 1 and experts == 4 else 1)
    a, b = replace(a, group=group), replace(b, group=group)
    moves = all_moves(units, group.unit_signs)
    tables = {
        (i, j, sign): unit_table(a.experts, b.experts, i, j, sign)
        for i in range(experts)
        for j in range(experts)
        for sign in (1, -1)
    }
    rows, other_rows = a.in_gauge().router.tensors(), b.in_gauge().router.tensors()
    # The cost of every pair of experts under every move of units; the group's elements choose among them freely.
    costs = {
        (i, j): [sum(tables[i, j, sign][f][g] for f, (sign, g) in enumerate(move)) for move in moves]
        for i in range(experts)
        for j in range(experts)
    }
    best = float("inf")
    for order in all_orders(experts, group.expert_groups):
        fixed = sum(
            sum(squares(rows[name][i], other_rows[name][j]) for name in rows)
            + (0.0 if a.experts.down_bias is None else squares(a.experts.down_bias[i], b.experts.down_bias[j]))
            for i, j in enumerate(order)
        )
        choices = [costs[i, j] for i, j in enumerate(order)]
        # A full product only where it is small; a sum of free choices is least where each is.
        full = len(moves) ** experts <= 1000
        best = min(best, fixed + (min(map(sum, product(*choices))) if full else sum(map(min, choices))))
    if a.shared_experts and b.shared_experts:
        shared = [unit_table(a.shared_experts, b.shared_experts, 0, 0, sign) for sign in (1, -1)]
        best += min(
            sum(shared[sign < 0][f][g] for f, (sign, g) in enumerate(move))
            for move in all_moves(units + 1, group.shared_unit_signs)
        )
        best += squares(a.shared_experts.down_bias, b.shared_experts.down_bias)
    assert align_layers(a, b, "joint").distance_after == pytest.approx(best**0.5, rel=1e-12)


def test_joint_is_never_worse_than_the_others(build):
    a, b = build(seed=0), build(seed=1)
    joint = align_layers(a, b, "joint").distance_after
    for method in ("units", "gate", "gram"):
        assert joint <= align_layers(a, b, method).distance_after + 1e-12


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_planted_symmetry_is_recovered_bit_for_bit(build, method, dtype):
    layer = build(dtype=dtype)
    planted = derangement(layer)
    found = align_layers(layer, act(planted, layer), method)
    assert found.symmetry == planted.inverse()
    assert same_weights(act(found.symmetry, act(planted, layer)), layer)
    assert found.distance_after == 0.0
    assert found.distance_before > 1.0


def test_control_units_alone_do_not_recover_moved_experts(build):
    layer = build()
    assert align_layers(layer, act(derangement(layer), layer), "units").distance_after > 1.0


@pytest.mark.parametrize("method", [*ORDERS, "units"])
def test_a_layer_aligned_with_itself_is_left_alone(build, method):
    layer = build(dtype=torch.float32)
    found = align_layers(layer, layer, method)
    assert found.symmetry.is_identity
    assert found.distance_before == found.distance_after == 0.0


def test_alignment_commutes_with_symmetries_of_the_other(build):
    """Rewriting the other layer first changes the symmetry that is found, not the aligned layer."""
    a, b = build(seed=0), build(seed=1)
    g = derangement(b)
    direct, rewritten = align_layers(a, b, "joint").symmetry, align_layers(a, act(g, b), "joint").symmetry
    assert same_weights(act(direct, b), act(rewritten, act(g, b)))


def test_distance_ignores_router_translations_of_a_softmax():
    layer = LAYER_KINDS["mlp"]()
    moved = replace(layer, router=replace(layer.router, weight=layer.router.weight + 3.0))
    assert layer_distance(layer, moved) == pytest.approx(0, abs=1e-12)
    sigmoid, moved = (replace(x, group=replace(x.group, router_translation=False)) for x in (layer, moved))
    assert layer_distance(sigmoid, moved) == pytest.approx(3.0 * (5 * 13) ** 0.5)


def test_a_given_order_is_used(build):
    a, b = build(seed=0), build(seed=1)
    order = Permutation(torch.arange(a.experts.num_experts).flip(0))
    assert align_layers(a, b, order).symmetry.experts == order


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (LAYER_KINDS["mlp"](E=6), "experts: the reference has 5, the other has 6"),
        (LAYER_KINDS["mlp"](F_=8), "units per expert: the reference has 7, the other has 8"),
        (LAYER_KINDS["mlp"](H=12), r"router.weight: \(5, 13\) in the reference, \(5, 12\) in the other"),
        (LAYER_KINDS["mlp, shared experts"](), "shared experts: the reference has none"),
        (LAYER_KINDS["mlp, router without bias"](), "router.bias: .* absent in the other"),
        (replace(LAYER_KINDS["mlp"](), group=replace(SOFTMAX, router_translation=False)), "router_translation: True"),
    ],
)
def test_incomparable_layers_are_refused(other, message):
    with pytest.raises(IncompatiblePairError, match=message):
        align_layers(LAYER_KINDS["mlp"](), other)
