"""Matching sees layers in the gauge: neither free scales nor translations count."""

from dataclasses import asdict, replace

import pytest
import torch

from hf_moe_lmc.matching import align_layers, layer_distance
from hf_moe_lmc.moe import MoeLayer, act
from tests.layers import LAYER_KINDS, derangement, planted_scales, same_weights

KINDS = [(kind, degree) for kind in LAYER_KINDS for degree in (1, 2)]
ORDERS = ["gate", "gram", "joint", "auto"]


def build(kind: str, degree: int, seed: int = 0) -> MoeLayer:
    layer = LAYER_KINDS[kind](seed=seed)
    shared = degree if layer.shared_experts else 0
    return replace(layer, group=replace(layer.group, unit_scale_degree=degree, shared_unit_scale_degree=shared))


def planted(layer: MoeLayer, sigma: float, seed: int = 1) -> MoeLayer:
    """Scales on every unit, and a translation of the router."""
    layer = planted_scales(layer, sigma, seed)
    if not layer.group.router_translation:
        return layer
    weight = layer.router.weight
    shift = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(seed)).double()
    return replace(layer, router=replace(layer.router, weight=weight + shift))


@pytest.mark.parametrize("sigma", [0.5, 3.0])
@pytest.mark.parametrize(("kind", "degree"), KINDS)
def test_alignment_and_evidence_are_those_without_planted_scales(kind, degree, sigma):
    a, b = build(kind, degree), build(kind, degree, seed=1)
    b = b.with_tensors({name: x + 0.7 * a.tensors()[name] for name, x in b.tensors().items()})
    for order in ORDERS:
        found, plain = align_layers(planted(a, sigma, 2), planted(b, sigma), order), align_layers(a, b, order)
        assert found.symmetry == plain.symmetry
        assert found.distance_before == pytest.approx(plain.distance_before)
        assert found.distance_after == pytest.approx(plain.distance_after)
        figures, others = asdict(found.evidence), asdict(plain.evidence)
        for name in ("expert_method", "unit_solvers"):
            assert figures.pop(name) == others.pop(name)
        for row, other in zip(figures.pop("experts"), others.pop("experts"), strict=True):
            assert row == pytest.approx(other, rel=1e-3, abs=1e-3)
        assert figures == pytest.approx(others, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("kind", "degree"), KINDS)
def test_a_copy_rescaled_and_permuted_is_matched_back(kind, degree, order):
    layer = build(kind, degree)
    symmetry, copy = derangement(layer), planted(layer, 1.0)
    other = act(symmetry, copy)
    found = align_layers(layer, other, order)
    assert found.symmetry == symmetry.inverse()
    assert found.distance_after < 1e-6 < 1.0 < found.distance_before
    # No scale is written: what comes back is the rescaled copy, bit for bit.
    assert same_weights(act(found.symmetry, other), copy)
    assert layer_distance(layer, copy) < 1e-6


def test_control_where_scales_are_not_free_they_count():
    """Large units of one copy go to large units of the other, whatever they compute."""
    layer = build("swiglu", 1)
    fixed = replace(layer.group, unit_scale_degree=0)
    symmetry = derangement(layer)
    a, b = planted(layer, 2.0, 2), act(symmetry, planted(layer, 2.0, 3))
    assert align_layers(a, b, "joint").symmetry == symmetry.inverse()
    a, b = (replace(x, group=fixed) for x in (a, b))
    assert align_layers(a, b, "joint").symmetry.units != symmetry.inverse().units
    assert layer_distance(a, b) > 10


def test_weights_of_units_that_compute_nothing_do_not_count():
    layer = build("swiglu", 1)
    down = layer.experts.down_proj.index_fill(2, torch.tensor([2, 5]), 0.0)
    up = layer.experts.up_proj.index_fill(1, torch.tensor([2, 5]), 100.0)
    a, b = (
        replace(layer, experts=replace(layer.experts, down_proj=down, up_proj=x)) for x in (up, layer.experts.up_proj)
    )
    assert layer_distance(a, b) == 0
    assert align_layers(a, b).symmetry.is_identity
