"""The default order: never farther than doing nothing, or than any other order that has a name."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_moe_lmc.matching import align_layers, expert_order
from hf_moe_lmc.moe import MoeLayer, SymmetryGroup, act
from hf_moe_lmc.symmetry import Permutation
from tests.layers import LAYER_KINDS, derangement
from tests.matching.matched import distance_after, match_layers_experts

NAMED = ("none", "units", "gate", "gram")


def draw(shape, seed: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def correlated(layer: MoeLayer, c: float, seed: int) -> MoeLayer:
    """All weights with correlation c to those of `layer`."""
    tensors = layer.tensors()
    return layer.with_tensors(
        {n: c * x + (1 - c * c) ** 0.5 * draw(x.shape, seed + i, x.dtype) for i, (n, x) in enumerate(tensors.items())}
    )


def with_router(layer: MoeLayer, weight: torch.Tensor) -> MoeLayer:
    return replace(layer, router=replace(layer.router, weight=weight))


ROUTERS = {
    "own": lambda weight, seed: weight,
    "zero": lambda weight, seed: torch.zeros_like(weight),
    "one row for all": lambda weight, seed: weight[:1].expand_as(weight).clone(),
    "rows in pairs": lambda weight, seed: weight[torch.arange(len(weight)) // 2],
    "few values": lambda weight, seed: (weight / 2).round(),
    "moved without experts": lambda weight, seed: weight.roll(1, 0),
    "of another model": lambda weight, seed: draw(weight.shape, seed, weight.dtype),
}
EXPERTS = {
    "own": lambda tensor, seed: tensor,
    "one for all": lambda tensor, seed: tensor[:1].expand_as(tensor).clone(),
    "nearly one for all": lambda tensor, seed: tensor[:1] + 1e-3 * draw(tensor.shape, seed, tensor.dtype),
    "in pairs": lambda tensor, seed: tensor[torch.arange(len(tensor)) // 2],
    "some zero": lambda tensor, seed: tensor * (torch.arange(len(tensor)) % 3 > 0).view(-1, *[1] * (tensor.ndim - 1)),
    "few values": lambda tensor, seed: (tensor / 2).round(),
}


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(list(LAYER_KINDS)),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6)),
    routers=st.tuples(*[st.sampled_from(list(ROUTERS))] * 2),
    experts=st.sampled_from(list(EXPERTS)),
    correlation=st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]),
    scrambled=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_never_farther_than_the_present_order_or_any_that_has_a_name(
    kind, sizes, routers, experts, correlation, scrambled, seed
):
    layer = LAYER_KINDS[kind](2 * sizes[0], *sizes[1:], seed=seed)
    layer = replace(layer, group=replace(layer.group, expert_groups=min(layer.group.expert_groups, 2)))
    layer = replace(layer, experts=layer.experts.map(lambda tensor: EXPERTS[experts](tensor, seed)))
    other = correlated(layer, correlation, seed + 1)
    a, b = (
        with_router(x, ROUTERS[name](x.router.weight, seed)) for x, name in zip((layer, other), routers, strict=True)
    )
    if scrambled:
        b = act(derangement(b, seed), b)
    distance, matching = distance_after(a, b, "auto")
    distances = {method: distance_after(a, b, method)[0] for method in NAMED}
    assert distance <= min(distances.values()) * (1 + 1e-6) + 1e-9
    if distances["units"] <= distance:
        assert matching.order.is_identity
    if matching.certified:
        assert distance == pytest.approx(distance_after(a, b, "joint")[0], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_experts_of_product_keys(seed):
    group = SymmetryGroup(product_keys=True, router_translation=True)
    layer = LAYER_KINDS["mlp, router without bias"](7, 7, 13, seed=seed)
    layer = replace(layer, group=group, experts=replace(layer.experts, up_bias=None, down_bias=None))
    for other in (correlated(layer, 0.1, seed), with_router(layer, layer.router.weight.roll(1, 0))):
        distances = {method: align_layers(layer, other, method).distance_after for method in ("units", "gate", "gram")}
        assert align_layers(layer, other, "auto").distance_after <= min(distances.values()) * (1 + 1e-9)
    same = with_router(layer, torch.zeros_like(layer.router.weight))
    assert align_layers(same, same, "auto").symmetry.is_identity


def test_router_rows_moved_without_experts():
    layer = LAYER_KINDS["swiglu"](8, 12, 16)
    near = correlated(layer, 0.999, 5)
    other = with_router(near, near.router.weight.roll(1, 0))
    gate, auto = (align_layers(layer, other, method) for method in ("gate", "auto"))
    assert auto.symmetry.experts.is_identity
    assert gate.distance_after > 5 * auto.distance_after


@pytest.mark.parametrize("router", ["zero", "one row for all", "rows in pairs"])
def test_ties_of_router_rows_shuffle_no_siblings(router):
    layer = LAYER_KINDS["swiglu"](8, 12, 16)
    layer = with_router(layer, ROUTERS[router](layer.router.weight, 0))
    sibling = with_router(correlated(layer, 0.9999, 5), layer.router.weight)
    assert align_layers(layer, sibling, "auto").symmetry.experts.is_identity
    planted = derangement(layer)
    assert align_layers(layer, act(planted, sibling), "auto").symmetry.experts == planted.experts.inverse()
    # Control: by router rows alone siblings come apart, unless ties are settled by where they stand.
    assert not expert_order._is_clear(-match_layers_experts(layer, sibling, "gate").table, Permutation.identity(8))


def test_weak_correlation_is_recovered_as_by_gram_matrices():
    """64 experts: a sketch, and bounds, tell too little."""
    layer = LAYER_KINDS["swiglu"](64, 32, 64)
    planted = derangement(layer)
    other = act(planted, correlated(layer, 0.25, 5))
    other = with_router(other, draw(other.router.weight.shape, 6))
    orders = {method: match_layers_experts(layer, other, method).order.index for method in ("gram", "auto")}
    recovered = {m: (order == planted.experts.inverse().index).double().mean() for m, order in orders.items()}
    assert recovered["auto"] >= recovered["gram"] > 0.8
    assert len(match_layers_experts(layer, other, "auto").pairs) <= 5 * 64


def test_siblings_are_proven_with_one_unit_assignment_per_expert():
    """Whatever their routers say: in place, scrambled, and frozen ones."""
    layer = LAYER_KINDS["swiglu"](8, 160, 48, dtype=torch.float32)
    sibling = correlated(layer, 0.9999, 5)
    planted = derangement(layer)
    for other, order in ((sibling, Permutation.identity(8)), (act(planted, sibling), planted.experts.inverse())):
        found = match_layers_experts(layer, other, "auto")
        assert (found.order, found.certified, found.method, len(found.pairs)) == (order, True, "gate", 8)
        silent = [with_router(x, torch.zeros_like(x.router.weight)) for x in (layer, other)]
        found = match_layers_experts(*silent, "auto")
        assert (found.order, found.certified, found.method, len(found.pairs)) == (order, True, "joint", 8)
