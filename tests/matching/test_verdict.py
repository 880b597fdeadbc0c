"""Verdicts on pairs whose truth is known, built from layers of tiny real models."""

from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.adapters import moe_layers
from hf_moe_lmc.matching import align_layers
from hf_moe_lmc.matching.verdict import LayerEvidence, Verdict
from hf_moe_lmc.moe import MoeLayer, act
from tests import families
from tests.layers import derangement

FAMILIES = ["mixtral", "qwen2_moe"]


@pytest.fixture(scope="module", params=FAMILIES)
def layers(request):
    """The same layer of two independent models."""

    def layer(seed: int) -> MoeLayer:
        model = families.build(request.param, experts=12, seed=seed)
        return moe_layers(model)[-1].read(model.state_dict())

    return layer(1000), layer(1001)


def correlated(layer: MoeLayer, other: MoeLayer, c: float) -> MoeLayer:
    """All weights with correlation c to those of `layer`."""
    tensors = other.tensors()
    return layer.with_tensors({name: c * x + (1 - c * c) ** 0.5 * tensors[name] for name, x in layer.tensors().items()})


def scrambled(layer: MoeLayer) -> MoeLayer:
    return act(derangement(layer, seed=3), layer)


def evidence(reference: MoeLayer, other: MoeLayer) -> LayerEvidence:
    found = align_layers(reference, other, "auto").evidence
    assert found is not None
    return found


def test_siblings_are_in_place_and_scrambled_ones_are_aligned(layers):
    a, other = layers
    sibling = correlated(a, other, 0.999)
    assert evidence(a, sibling).label == "in_place"
    assert evidence(a, scrambled(sibling)).label == "aligned"


def test_independent_models_are_unrelated(layers):
    a, b = layers
    assert evidence(a, b).label == evidence(b, a).label == "unrelated"
    # Even where the router was kept: it says which expert is which, but no expert is like its namesake.
    assert evidence(a, replace(b, router=a.router)).label == "unrelated"


def test_a_layer_of_which_one_expert_was_drawn_anew_is_partly_related(layers):
    a, b = layers
    one = {name: torch.cat([b.experts.tensors()[name][:1], x[1:]]) for name, x in a.experts.tensors().items()}
    found = evidence(a, scrambled(replace(a, experts=replace(a.experts, **one))))
    assert found.label == "partly_related"
    assert found.unrelated == 1
    assert not found.experts[0].related


def test_copies_of_one_expert_have_no_order(layers):
    a, b = layers

    def upcycled(layer: MoeLayer, seed: int) -> MoeLayer:
        generator = torch.Generator().manual_seed(seed)

        def copies(x):
            return x[:1] + 0.05 * x.std() * torch.randn(x.shape, generator=generator)

        return replace(layer, experts=layer.experts.map(copies))

    first, second = upcycled(a, 1), replace(upcycled(a, 2), router=b.router)
    assert evidence(first, scrambled(second)).label == "order_immaterial"
    assert evidence(first, scrambled(first)).label == "aligned"


def test_no_layer_is_averaged_with_another(layers):
    a, b = layers
    same, unrelated = evidence(a, a), evidence(a, b)
    verdict = Verdict({"first": same, "second": same, "third": unrelated})
    assert verdict.counts == {"in_place": 2, "unrelated": 1}
    assert "will damage" in verdict.sentence
    assert "unrelated" in Verdict({"only": unrelated}).sentence
    assert "same expert order" in Verdict({"only": same}).sentence
