"""One sentence for every cause that people look for, each with a control that must not have it."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from hf_moe_lmc import scramble
from hf_moe_lmc.comparison import compare
from tests.comparison import plants
from tests.families import HIDDEN, VOCABULARY, build, draw_weights


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build("mixtral", experts=8)


@torch.no_grad()
def noisy(model: PreTrainedModel, share: float, applies: Callable[[str], bool] = lambda name: True) -> PreTrainedModel:
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(9)
    for name, parameter in model.named_parameters():
        if applies(name):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(share * parameter.square().mean().sqrt() * noise)
    return model


@torch.no_grad()
def reordered(model: PreTrainedModel, order: list[int], router: bool, experts: bool, first: int = 0) -> PreTrainedModel:
    model = copy.deepcopy(model)
    for layer in model.model.layers[first:]:
        parts = [layer.mlp.gate.weight] * router
        parts += [layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj] * experts
        for part in parts:
            part.copy_(part[order].clone())
    return model


@torch.no_grad()
def pruned(model: PreTrainedModel, kept: list[int]) -> PreTrainedModel:
    smaller = build(model.config.model_type, experts=len(kept))
    tensors = model.state_dict()
    for name, tensor in smaller.state_dict().items():
        source = tensors[re.sub(r"expert_(\d+)", lambda match: f"expert_{kept[int(match[1])]}", name)]
        tensor.copy_(source if source.shape == tensor.shape else source[kept])
    return smaller


@torch.no_grad()
def upcycled() -> tuple[PreTrainedModel, PreTrainedModel]:
    dense = MistralForCausalLM(
        MistralConfig(
            hidden_size=HIDDEN,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            vocab_size=VOCABULARY,
        )
    )
    draw_weights(dense, 1, seed=3)
    sparse = build("mixtral", experts=4)
    tensors, own = dense.state_dict(), sparse.state_dict()
    for name in own.keys() & tensors.keys():
        own[name].copy_(tensors[name])
    for number, layer in enumerate(sparse.model.layers):
        gate, up, down = (tensors[f"model.layers.{number}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
        layer.mlp.experts.gate_up_proj.copy_(torch.cat([gate, up]).expand(4, -1, -1))
        layer.mlp.experts.down_proj.copy_(down.expand(4, -1, -1))
    return dense, sparse


def down_redrawn(experts, j, generator):
    experts.down_proj[j].normal_(std=float(experts.down_proj[j].std()), generator=generator)
    return plants.Slot("changed", j)


def test_identical(model):
    comparison = compare(model, copy.deepcopy(model))
    assert comparison.sentences == ("A and B are identical, bit for bit: 24 experts, 24 other tensors",)
    assert comparison.same_function
    assert comparison.related


def test_rewritten(model):
    comparison = compare(model, scramble(copy.deepcopy(model))[0])
    assert comparison.same_function
    assert comparison.sentences[0].startswith("B is A rewritten, the same function: experts in another order in 3 of 3")
    assert {layer.router for layer in comparison.layers} == {"with experts"}
    assert {expert.units for layer in comparison.layers for expert in layer.experts} == {"reordered"}


def test_rounded(model):
    comparison = compare(model, copy.deepcopy(model).bfloat16())
    assert comparison.sentences[0] == "B is A rounded to another dtype: 24 experts, changed by 0.16 to 0.17 %"
    assert not comparison.same_function
    assert compare(copy.deepcopy(model).bfloat16(), copy.deepcopy(model).bfloat16().float()).same_function
    moved = compare(model, scramble(copy.deepcopy(model).bfloat16())[0])
    assert moved.sentences[0].startswith("B is A rounded to another dtype, experts in another order in 3 of 3 layers")


def test_fine_tuned(model):
    comparison = compare(model, noisy(model, 0.005))
    assert comparison.sentences[0].startswith("B is a fine-tune of A: all 24 experts in place, changed by 0.")
    assert {expert.kind for layer in comparison.layers for expert in layer.experts} == {"changed"}
    assert {layer.router for layer in comparison.layers} == {"unmoved"}


def test_fine_tuned_and_rewritten(model):
    comparison = compare(model, scramble(noisy(model, 0.01))[0])
    assert comparison.sentences[0].startswith("B is a fine-tune of A in another order: experts in another order")


def test_far_but_related(model):
    """More of every expert changed than stayed: no copy is named, and none is missed."""
    comparison = compare(model, noisy(model, 1.0))
    assert comparison.sentences[0].startswith("B's experts resemble A's more than chance and are far from them")
    assert not any("cop" in sentence or "nowhere" in sentence for sentence in comparison.sentences)
    assert comparison.related


def test_lost_adapter(model):
    comparison = compare(model, noisy(model, 0.005, lambda name: "experts" not in name))
    assert "bit-identical to A's (24) while 24 other tensors changed: was an adapter" in comparison.sentences[0]


def test_only_experts_and_only_routers(model):
    of_experts = compare(model, noisy(model, 0.05, lambda name: "experts" in name))
    assert of_experts.sentences[0].startswith("only experts differ: all 24 experts changed by")
    of_routers = compare(model, noisy(model, 0.1, lambda name: "gate.weight" in name))
    assert of_routers.sentences[0].startswith("only routers differ (3 tensors, by ")
    assert {layer.router for layer in of_routers.layers} == {"changed"}


def test_repeated_by_ranks(model):
    comparison = compare(model, reordered(model, [0, 1] * 4, router=False, experts=True))
    assert comparison.sentences[0].startswith(
        "experts 0 and 1 are repeated four times in every layer: exported with four"
    )
    assert comparison.layers[0].missing == (2, 3, 4, 5, 6, 7)
    assert {layer.router for layer in comparison.layers} == {"unmoved"}


def test_routers_of_copies(model):
    """The slot with the expert's router row has the expert, the others are copies, wherever they stand."""
    scrambled = scramble(plants.planted(model, {3: plants.copied})[0])[0]
    assert {layer.router for layer in compare(model, scrambled).layers} == {"with experts"}


def test_router_moved_alone(model):
    comparison = compare(model, reordered(model, [*range(1, 8), 0], router=True, experts=False, first=1))
    assert comparison.sentences[0].startswith("in layers 1 and 2 the router rows moved and the experts did not")
    assert [layer.router for layer in comparison.layers] == ["unmoved", "without experts", "without experts"]
    assert not comparison.same_function


def test_experts_moved_alone(model):
    comparison = compare(model, reordered(model, [*range(1, 8), 0], router=False, experts=True, first=1))
    assert comparison.sentences[0].startswith("in layers 1 and 2 the experts moved and the router rows did not")
    assert not comparison.same_function


def test_pruned(model):
    comparison = compare(model, pruned(model, [0, 1, 2, 3, 5, 7]))
    assert comparison.sentences[0] == "B is A without experts 4 and 6, renumbered, unchanged (in every layer)"
    assert [layer.missing for layer in comparison.layers] == [(4, 6)] * 3
    in_place = compare(model, pruned(model, [0, 1, 2, 3, 4, 5]))
    assert in_place.sentences[0].startswith("B is A without experts 6 and 7, the others in place")


def test_pruned_encoder_decoder():
    model = build("switch_transformers", experts=6)
    comparison = compare(model, scramble(noisy(pruned(model, [0, 1, 3, 5]), 0.01))[0])
    assert comparison.sentences[0].startswith("B is A without experts 2 and 4, in another order, changed by 0.")
    assert [(layer.router, layer.missing) for layer in comparison.layers] == [("with experts", (2, 4))] * 2


def test_upcycled():
    dense, sparse = upcycled()
    comparison = compare(dense, noisy(sparse, 0.008))
    assert comparison.sentences[0].startswith(
        "every expert of B comes from the dense MLP of A (upcycled; changed by 0."
    )
    assert [expert.kind for expert in comparison.layers[0].experts] == ["changed", "copied", "copied", "copied"]
    back = compare(sparse, dense).sentences
    assert back[0].startswith("B is A without experts 1 to 3, the others in place, unchanged")
    assert not any("router" in sentence for sentence in back)


def test_unrelated(model):
    comparison = compare(model, build("mixtral", experts=8, seed=77))
    assert comparison.sentences[0].startswith(
        "the weights are unrelated: none of 24 experts is nearer to A than chance"
    )
    assert not comparison.related


def test_layers_removed(model):
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = 2
    shallow = type(model)(config).eval()
    tensors = model.state_dict()
    with torch.no_grad():
        for name, tensor in shallow.state_dict().items():
            tensor.copy_(tensors[name.replace("layers.1.", "layers.2.")])
    comparison = compare(model, shallow)
    assert comparison.sentences[0] == "B is A without layer 1 of model.layers, renumbered"
    assert [layer.source for layer in comparison.layers] == ["model.layers.0.mlp", "model.layers.2.mlp"]
    assert {expert.kind for layer in comparison.layers for expert in layer.experts} == {"identical"}


@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        (plants.swapped, "gate_proj and up_proj are swapped in expert 3 in every layer"),
        (
            plants.interleaved,
            "rows of gate_proj and up_proj are interleaved that should be joined, or the reverse in exp",
        ),
        (plants.transposed, "projections are transposed in expert 3 in every layer"),
        (plants.scaled, "off by a constant factor (up_proj or down_proj x 0.4): expert 3 in every layer"),
        (plants.zero, "zero, or next to it, in one projection at least: expert 3 in every layer"),
        (plants.unrelated, "unrelated to every expert of A: expert 3 in every layer"),
        (plants.copied, "copies in every layer: slot 3 is a copy of expert 0"),
        (down_redrawn, "down_proj is not A's in expert 3 in every layer, and the rest is: lost, or another expert's?"),
        (plants.not_finite, "NaN or infinite values in expert 3 of model.layers.0.mlp"),
    ],
)
def test_faults(model, plant, sentence):
    comparison = compare(model, plants.planted(model, {3: plant})[0])
    assert comparison.sentences[0].startswith(sentence)
    assert comparison.sentences[-1].startswith("21 of 24 experts and ")
    assert not comparison.same_function


def test_other_settings(model):
    other = copy.deepcopy(model)
    other.config.num_experts_per_tok = 1
    comparison = compare(model, other)
    assert not comparison.same_function
    assert "num_experts_per_tok is 3 in A, 1 in B" in comparison.sentences[0]


def test_summary_has_fifteen_lines_at_most(model):
    things = dict(enumerate([plants.swapped, plants.unrelated, plants.scaled, plants.zero, plants.not_finite], start=1))
    summary = compare(model, plants.planted(noisy(model, 0.02), things)[0]).summary()
    assert 5 < summary.count("\n") <= 15
