"""Verdicts on pairs whose truth is known, built from layers of tiny real models."""

import json
from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.adapters import moe_layers
from hf_moe_lmc.matching import LayerEvidence, Verdict, align_layers
from hf_moe_lmc.moe import MoeLayer
from tests import families
from tests.matching.known_pairs import changed, known_pairs, noisy, scrambled, with_experts

# Softmax and sigmoid routers, groups, selection biases; gated experts, ReLU and its square; biases, shared experts.
FAMILIES = ["mixtral", "olmoe", "qwen2_moe", "deepseek_v3", "gpt_oss", "switch_transformers", "nemotron_h"]
EXPERTS = 6
SEED = 3_000  # of no layer that anything was chosen on


def layer_of(family: str, seed: int, experts: int = EXPERTS) -> MoeLayer:
    model = families.build(family, experts=experts, seed=seed)
    return moe_layers(model)[-1].read(model.state_dict())


@pytest.fixture(scope="module", params=FAMILIES)
def layers(request) -> tuple[MoeLayer, MoeLayer]:
    """The same layer of two independent models."""
    return layer_of(request.param, SEED), layer_of(request.param, SEED + 1)


def evidence(reference: MoeLayer, other: MoeLayer) -> LayerEvidence:
    found = align_layers(reference, other).evidence
    assert found is not None
    return found


@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss", "switch_transformers"])  # benchmarks/verdict.py: all
def test_every_known_pair_is_judged_rightly(family):
    pairs = known_pairs(layer_of(family, SEED), layer_of(family, SEED + 1), seed=SEED)
    wrong = {name: mistakes for name, pair in pairs.items() if (mistakes := pair.mistakes(pair.judge()))}
    assert not wrong


def test_the_experts_that_were_lost_are_named(layers):
    layer, fresh = layers
    lost = with_experts(changed(layer, noisy(0.01), SEED), fresh, (0, 3, 5))
    assert [e.slot for e in evidence(layer, lost).experts if not e.related] == [0, 3, 5]
    rows = evidence(layer, scrambled(lost)).experts
    assert [e.slot for e in rows if not e.related] == [0, 3, 5]


@pytest.mark.parametrize("noise", [0.01, 1.0])
def test_the_verdict_does_not_depend_on_the_direction(layers, noise):
    layer, fresh = layers
    for other in (scrambled(changed(layer, noisy(noise), SEED)), with_experts(layer, fresh, (2, 3)), fresh):
        there, back = evidence(layer, other), evidence(other, layer)
        assert there.label == back.label
        if there.label == "unrelated":  # of which the order may differ
            continue
        assert there.order_z == pytest.approx(back.order_z, rel=1e-3)
        pairs = {(e.shared, e.slot, e.source): e for e in there.experts}
        for expert in back.experts:
            same = pairs[expert.shared, expert.source, expert.slot]
            assert same.z == pytest.approx(expert.z, rel=1e-3, abs=1e-3)
            assert same.related == expert.related


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_an_unrelated_expert_changes_its_own_verdict_only(family):
    layer, fresh = layer_of(family, SEED), layer_of(family, SEED + 1)
    other = scrambled(changed(layer, noisy(0.5), SEED))

    def more(a: MoeLayer, expert: MoeLayer) -> MoeLayer:
        tensors = expert.tensors()
        routed = {n: torch.cat([x, tensors[n][:1]]) for n, x in a.tensors().items() if not n.startswith("shared")}
        return a.with_tensors(a.tensors() | routed)

    before = evidence(layer, other)
    after = evidence(more(layer, fresh), more(other, layer_of(family, SEED + 2)))
    rows = {(e.shared, e.slot): e for e in after.experts}
    assert not rows.pop((False, EXPERTS)).related
    assert (before.label, after.label) == ("aligned", "partly_related")
    for expert in before.experts:
        same = rows[expert.shared, expert.slot]
        assert (same.source, same.related) == (expert.source, expert.related)
        assert same.z == pytest.approx(expert.z, rel=0.3)


def test_a_dense_layer_has_no_order(layers):
    layer, _ = layers
    dense = MoeLayer(None, layer.experts.map(lambda tensor: tensor[:1]), group=layer.group)
    near = changed(dense, noisy(0.05), SEED)
    found = evidence(dense, near), evidence(dense, scrambled(near))
    assert [one.label for one in found] == ["in_place", "aligned"]
    assert [one.order_z for one in found] == [None, None]


def test_experts_that_are_fixed_have_no_order():
    layer, fresh = layer_of("nllb_moe", SEED), layer_of("nllb_moe", SEED + 1)
    near = changed(layer, noisy(0.05), SEED)
    found = [evidence(layer, other) for other in (near, scrambled(near), with_experts(near, fresh, (1,)), fresh)]
    assert [one.label for one in found] == ["in_place", "aligned", "partly_related", "unrelated"]
    assert [one.order_z for one in found] == [None] * 4


@pytest.fixture(scope="module")
def judged() -> dict[str, LayerEvidence]:
    """Label -> the evidence of a layer that has it."""
    layer, fresh = layer_of("qwen2_moe", SEED), layer_of("qwen2_moe", SEED + 1)
    pairs = known_pairs(layer, fresh, SEED)
    names = ("sibling", "sibling, scrambled", "upcycled twice, noise 0.3", "one expert re-initialised", "independent")
    found = [pairs[name].judge() for name in names]
    return {one.label: one for one in found}


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (["in_place"], "These models already have the same expert order: alignment changes nothing"),
        (["in_place", "aligned"], "merge with this alignment"),
        (["order_immaterial", "in_place"], "the order of experts makes no measurable difference"),
        (["unrelated"], "These weights are unrelated; a merge will not work."),
        (["in_place", "unrelated"], "A merge will damage the layers that hold unrelated experts"),
        (["aligned", "partly_related"], "A merge will damage the layers that hold unrelated experts"),
    ],
)
def test_the_sentence_is_that_of_the_worst_layer(judged, labels, sentence):
    """However many layers are better: nothing is averaged."""
    verdict = Verdict({f"layer {i}": judged[label] for i, label in enumerate([labels[0]] * 9 + labels)})
    assert sentence in verdict.sentence
    assert verdict.counts == {label: 1 + 9 * (label == labels[0]) for label in labels} or labels[0] != labels[-1]
    assert sum(verdict.counts.values()) == 9 + len(labels)


def test_the_text_counts_layers_and_names_those_with_unrelated_experts(judged):
    verdict = Verdict({"first": judged["aligned"], "second": judged["partly_related"], "third": judged["aligned"]})
    assert verdict.text() == (
        "verdict: 2 of 3 layers: aligned; 1 of 3 layers: partly related; second: 1 of 7 experts unrelated. "
        "A merge will damage the layers that hold unrelated experts; evaluate it before you use it."
    )


def test_its_record_has_stable_names(judged):
    verdict = Verdict({"first": judged["aligned"], "second": judged["unrelated"]})
    record = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert record.keys() == {"sentence", "counts", "layers"}
    assert record["counts"] == {"aligned": 1, "unrelated": 1}
    assert [row["name"] for row in record["layers"]] == ["first", "second"]
    assert record["layers"][0].keys() == {"name", "label", "order_z", "experts"}
    rows = record["layers"][0]["experts"]
    assert [row["slot"] for row in rows] == [*range(EXPERTS), 0]
    assert sorted(row["source"] for row in rows[:EXPERTS]) == list(range(EXPERTS))
    assert [row["shared"] for row in rows] == [False] * EXPERTS + [True]
    assert all(row["related"] and row["z"] > 6 for row in rows)


def test_evidence_says_what_was_done(layers):
    layer, _ = layers
    other = scrambled(changed(layer, noisy(0.05), SEED))
    found = align_layers(layer, other, "joint").evidence
    assert found.expert_method == "joint"
    assert found.certified
    assert found.solved_pairs == EXPERTS
    assert sum(found.unit_solvers.values()) == len(found.experts)
    assert 0 <= found.gap < 1e-3
    assert found.unit_margin_median > 0
    assert all(expert.fixed < 0.5 for expert in found.experts)
    assert all(expert.in_place for expert in evidence(layer, layer).experts)


def test_a_random_rewrite_is_as_far_as_the_evidence_says(layers):
    """On average over random moves of units, signs included, in the expert order that was found."""
    from hf_moe_lmc.matching import layer_distance
    from hf_moe_lmc.moe import act

    layer, fresh = layers
    found = align_layers(layer, fresh, "units")
    squares = []
    for seed in range(20):
        move = layer.group.random_derangement(*layer.symmetry_shape, generator=torch.Generator().manual_seed(seed))
        squares.append(layer_distance(layer, act(replace(move, experts=found.symmetry.experts), fresh)) ** 2)
    assert found.evidence.random_distance**2 == pytest.approx(sum(squares) / 20, rel=0.03)
