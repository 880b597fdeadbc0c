from dataclasses import replace
from itertools import permutations, product

import pytest
import torch

from hf_moe_lmc.errors import IncompatiblePairError
from hf_moe_lmc.matching import align_layers, layer_distance
from hf_moe_lmc.moe import act
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation
from tests.layers import LAYER_KINDS, same_weights

ORDERS = ["gate", "gram", "joint"]


@pytest.fixture(params=LAYER_KINDS)
def build(request):
    return LAYER_KINDS[request.param]


def derangement(layer, seed: int = 0) -> MoeSymmetry:
    return MoeSymmetry.random_derangement(*layer.symmetry_shape, generator=torch.Generator().manual_seed(seed))


def squares(a: torch.Tensor | None, b: torch.Tensor | None) -> float:
    return 0.0 if a is None or b is None else (a - b).square().sum().item()


def unit_table(a, b, i: int, j: int) -> list[list[float]]:
    """Squared distance of unit f of a's expert i to unit g of b's expert j, by the loop."""

    def unit(x, e: int, f: int) -> list[torch.Tensor | None]:
        gate, bias = x.gate_proj, x.up_bias
        return [
            x.up_proj[e, f],
            x.down_proj[e, :, f],
            gate if gate is None else gate[e, f],
            bias if bias is None else bias[e, f],
        ]

    pairs = [[zip(unit(a, i, f), unit(b, j, g), strict=True) for g in range(3)] for f in range(3)]
    return [[sum(squares(x, y) for x, y in terms) for terms in row] for row in pairs]


@pytest.mark.parametrize("seed", range(5))
def test_joint_equals_brute_force_over_the_whole_group(build, seed):
    """All 3! x (3!)^3 elements, times the 3! of 3 shared units, none of them through the code under test."""
    a, b = (build(3, 3, 4, seed=2 * seed + i) for i in range(2))
    if a.shared_experts and b.shared_experts:
        a, b = (replace(x, shared_experts=x.experts.map(lambda tensor: tensor[:1] + 1)) for x in (a, b))
    orders = list(permutations(range(3)))
    rows, other_rows = a.router.centred(), b.router.centred()
    units = {(i, j): unit_table(a.experts, b.experts, i, j) for i in range(3) for j in range(3)}
    best = float("inf")
    for experts in orders:
        fixed = sum(
            squares(rows.weight[i], other_rows.weight[j])
            + (0.0 if rows.bias is None else squares(rows.bias[i], other_rows.bias[j]))
            + (0.0 if a.experts.down_bias is None else squares(a.experts.down_bias[i], b.experts.down_bias[j]))
            for i, j in enumerate(experts)
        )
        for moves in product(orders, repeat=3):
            moved = sum(units[i, experts[i]][f][moves[i][f]] for i in range(3) for f in range(3))
            best = min(best, fixed + moved)
    if a.shared_experts and b.shared_experts:
        table = unit_table(a.shared_experts, b.shared_experts, 0, 0)
        best += min(sum(table[f][move[f]] for f in range(3)) for move in orders)
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
    sigmoid, moved = (replace(x, router=replace(x.router, scoring="sigmoid")) for x in (layer, moved))
    assert layer_distance(sigmoid, moved) == pytest.approx(3.0 * (5 * 13) ** 0.5)


def test_a_given_order_is_used(build):
    order = Permutation(torch.tensor([4, 3, 2, 1, 0]))
    assert align_layers(build(seed=0), build(seed=1), order).symmetry.experts == order


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (LAYER_KINDS["mlp"](E=6), "experts: the reference has 5, the other has 6"),
        (LAYER_KINDS["mlp"](F_=8), "units per expert: the reference has 7, the other has 8"),
        (LAYER_KINDS["mlp"](H=12), r"router.weight: \(5, 13\) in the reference, \(5, 12\) in the other"),
        (LAYER_KINDS["mlp, shared experts"](), "shared experts: the reference has none"),
        (LAYER_KINDS["mlp, router without bias"](), "router.bias: .* absent in the other"),
        (replace(LAYER_KINDS["mlp"](), router=replace(LAYER_KINDS["mlp"]().router, scoring="sigmoid")), "scoring"),
    ],
)
def test_incomparable_layers_are_refused(other, message):
    with pytest.raises(IncompatiblePairError, match=message):
        align_layers(LAYER_KINDS["mlp"](), other)
