"""Verdicts on pairs whose truth is known, built from layers of tiny real models."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from hf_moe_lmc.adapters import moe_layers
from hf_moe_lmc.matching import align_layers, judge, judge_layer
from hf_moe_lmc.moe import MoeLayer, act
from tests import families
from tests.layers import derangement

FAMILIES = ["mixtral", "olmoe", "qwen2_moe", "deepseek_v3"]
SEEDS = {"calibration": 0, "held out": 1000}  # the thresholds were chosen on the first


@pytest.fixture(scope="module", params=product(FAMILIES, SEEDS), ids=", ".join)
def layers(request):
    """The same layer of three independent models."""
    family, which = request.param

    def layer(seed: int) -> MoeLayer:
        model = families.build(family, experts=12, seed=SEEDS[which] + seed)
        return moe_layers(model)[-1].read(model.state_dict())

    return [layer(seed) for seed in range(3)]


def correlated(layer: MoeLayer, other: MoeLayer, c: float) -> MoeLayer:
    """All weights with correlation c to those of `layer`."""

    def mixed(a, b):
        tensors = b.tensors()
        return replace(a, **{name: c * x + (1 - c * c) ** 0.5 * tensors[name] for name, x in a.tensors().items()})

    shared = layer.shared_experts
    return replace(
        layer,
        router=mixed(layer.router, other.router),
        experts=mixed(layer.experts, other.experts),
        shared_experts=mixed(shared, other.shared_experts) if shared else None,
    )


def upcycled(layer: MoeLayer, seed: int, noise: float = 0.05) -> MoeLayer:
    """All experts are one and the same, with noise."""
    generator = torch.Generator().manual_seed(seed)

    def copies(tensor):
        return tensor[:1] + noise * tensor.std() * torch.randn(tensor.shape, generator=generator)

    return replace(layer, experts=layer.experts.map(copies))


def scrambled(layer: MoeLayer) -> MoeLayer:
    return act(derangement(layer, seed=3), layer)


def shifted(layer: MoeLayer) -> MoeLayer:
    """Every weight kept, the hidden axis rotated by one place: unrelated to what it was."""
    experts = layer.experts
    gate = experts.gate_proj.roll(1, dims=2)
    moved = replace(experts, up_proj=experts.up_proj.roll(1, 2), down_proj=experts.down_proj.roll(1, 1), gate_proj=gate)
    return replace(layer, experts=moved)


def label(reference: MoeLayer, other: MoeLayer) -> str:
    evidence = align_layers(reference, other, "auto").evidence
    assert evidence is not None
    return judge_layer(evidence).partition(" (")[0]


def test_siblings_are_already_aligned_and_scrambled_ones_are_not(layers):
    a, other, _ = layers
    sibling = correlated(a, other, 0.999)
    assert label(a, sibling) == "already aligned"
    assert label(a, scrambled(sibling)) == "aligned"


@pytest.mark.parametrize("correlation", [0.8, 0.4])
def test_what_shares_a_part_is_aligned(layers, correlation):
    """As copies whose Mixture-of-Experts layers were trained anew: their matched weights correlate at about 0.4."""
    a, other, _ = layers
    partner = scrambled(correlated(a, other, correlation))
    assert label(a, partner) == "aligned"
    assert label(a, shifted(partner)) == "not alignable"


def test_independent_models_are_not_alignable(layers):
    a, b, c = layers
    assert label(a, b) == label(c, b) == "not alignable"
    assert label(a, scrambled(correlated(a, b, 0.999))) == "aligned"


def test_layers_drawn_anew_are_not_alignable(layers):
    """Even if their router was kept: it says which expert is which, but no expert is like its namesake."""
    a, other, new = layers
    assert label(a, replace(new, router=a.router)) == "not alignable"
    assert label(a, scrambled(replace(correlated(a, new, 0.8), router=other.router))) == "aligned"


def test_copies_of_one_expert_are_ambiguous_unless_they_can_be_told_apart(layers):
    a, other, _ = layers
    first = upcycled(a, seed=1)
    second = replace(upcycled(a, seed=2), router=other.router)
    assert label(first, scrambled(second)) == label(first, second) == "ambiguous"
    assert label(first, scrambled(correlated(first, first, 1.0))) == "aligned"


def test_the_pair_is_judged_by_its_median_layer(layers):
    a, b, _ = layers
    same, unrelated = (align_layers(a, other).evidence for other in (a, b))
    verdict = judge([same, same, unrelated])
    assert verdict.label == "already aligned"
    assert verdict.layers == {"already aligned": 2, "not alignable (weights unrelated)": 1}
    assert verdict.reduction == same.reduction
    assert judge([same, unrelated]).label == "not alignable (weights unrelated)"
