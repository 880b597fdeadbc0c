"""What may differ between two models, and what routers, shared experts and other tensors are then called."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from hf_moe_lmc import scramble
from hf_moe_lmc.cli import main
from hf_moe_lmc.comparison import ExpertComparison, compare, plot_comparison
from hf_moe_lmc.comparison.layers import _name_slots
from tests.comparison import plants
from tests.comparison.plants import edit, routed
from tests.families import SIZES, build


def kinds(comparison):
    return {expert.kind for layer in comparison.layers for expert in layer.experts}


@pytest.fixture(scope="module")
def qwen():
    return build("qwen2_moe", experts=6)


@pytest.mark.parametrize(
    ("family", "plant", "kind"),
    [
        ("deepseek_v3", plants.scaled, "scaled"),
        ("qwen2_moe", plants.swapped, "gate_up_swapped"),
        ("deepseek_v3", plants.interleaved, "interleaving"),
        ("qwen2_moe", plants.transposed_down, "transposed"),
        ("deepseek_v3", plants.unrelated, "unrelated"),
        ("qwen2_moe", plants.zero, "zero"),
        ("deepseek_v3", plants.changed, "changed"),
    ],
)
def test_shared_experts(family, plant, kind):
    a = build(family, experts=6)
    b, generator = copy.deepcopy(a), torch.Generator().manual_seed(1)
    for spec in routed(b):
        edit(b, spec, lambda layer: (plant(layer.shared_experts, 0, generator), layer)[1])
    comparison = compare(a, b)
    assert {expert.kind for layer in comparison.layers for expert in layer.shared_experts} == {kind}
    assert kinds(comparison) == {"identical"}
    assert not comparison.same_function
    assert "shared expert" in comparison.sentences[0]


def test_selection_biases_of_groups():
    a = build("deepseek_v3", experts=6)
    b = copy.deepcopy(a)
    bias = b.model.layers[1].mlp.gate.e_score_correction_bias
    bias.add_(torch.tensor([0.1, -0.1, 0.2, -0.2, 0.1, -0.1]) * bias.abs().max())
    comparison = compare(a, b)
    changed = {tensor.name: tensor.kind for tensor in comparison.tensors if tensor.kind != "identical"}
    assert changed == {"model.layers.1.mlp.gate.e_score_correction_bias": "changed"}
    assert not comparison.same_function


def test_selection_biases_that_stayed_while_experts_moved():
    a = build("deepseek_v3", experts=6)
    b, _ = scramble(copy.deepcopy(a))
    assert compare(a, b).same_function
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    b.state_dict()[name].copy_(a.state_dict()[name])
    comparison = compare(a, b)
    assert f"experts and router rows moved and {name} did not: tokens reach the wrong" in comparison.sentences[0]
    assert {t.name for t in comparison.tensors if t.kind == "changed"} == {name}
    assert not comparison.same_function


@pytest.mark.parametrize("family", ["inkling", "longcat_flash"])
def test_rows_of_shared_and_zero_experts(family):
    a = build(family, experts=6)
    b, _ = scramble(copy.deepcopy(a))
    shared = {expert.kind for layer in compare(a, b).layers for expert in layer.shared_experts}
    assert compare(a, b).same_function
    assert shared == ({"moved"} if family == "inkling" else set())
    spec = routed(b)[0]
    row = dict(spec.router.tensors)["weight"]
    b.state_dict()[row][-1] *= 1.2
    comparison = compare(a, b)
    assert not comparison.same_function
    assert [t.name for t in comparison.tensors if t.change is not None] == [row]


def test_an_order_that_breaks_groups_is_no_symmetry():
    a = build("deepseek_v3", experts=6)
    b = copy.deepcopy(a)
    for spec in routed(b):
        order = torch.tensor([0, 2, 1, 3, 4, 5])  # groups of two
        edit(b, spec, lambda layer, order=order: layer.with_tensors(
            {name: t if name.startswith("shared") else t[order] for name, t in layer.tensors().items()}
        ))  # fmt: skip
    comparison = compare(a, b)
    assert {layer.router for layer in comparison.layers} == {"with experts"}
    assert not comparison.same_function


@torch.no_grad()
def test_equal_experts_are_told_apart_by_their_router_rows():
    a = build("mixtral", experts=6)
    for layer in a.model.layers:
        for part in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
            part[4] = part[1]
            part[5] = 0
    b, _ = scramble(copy.deepcopy(a))
    assert compare(a, b).same_function
    b.model.layers[1].mlp.gate.weight.copy_(b.model.layers[1].mlp.gate.weight[[1, 2, 3, 4, 5, 0]].clone())
    assert [layer.router for layer in compare(a, b).layers] == ["with experts", "without experts", "with experts"]


@torch.no_grad()
def test_other_tensors(qwen):
    b = copy.deepcopy(qwen)
    layer = b.model.layers[1]
    layer.self_attn.q_proj.weight.normal_()
    layer.self_attn.o_proj.weight.mul_(3)
    layer.self_attn.k_proj.weight.zero_()
    layer.self_attn.v_proj.weight.add_(0.05 * torch.randn_like(layer.self_attn.v_proj.weight))
    b.lm_head.weight.copy_(b.lm_head.weight.bfloat16().float())
    found = {tensor.name: tensor.kind for tensor in compare(qwen, b).tensors if tensor.kind != "identical"}
    prefix = "model.layers.1.self_attn"
    assert found == {
        f"{prefix}.q_proj.weight": "unrelated",
        f"{prefix}.o_proj.weight": "scaled",
        f"{prefix}.k_proj.weight": "zero",
        f"{prefix}.v_proj.weight": "changed",
        "lm_head.weight": "rounded",
    }


def test_layouts_shards_and_live_models(qwen, tmp_path):
    qwen.save_pretrained(tmp_path / "experts", max_shard_size=40_000)
    qwen.save_pretrained(tmp_path / "fused", save_original_format=False)
    for a, b in ((tmp_path / "experts", tmp_path / "fused"), (tmp_path / "fused", qwen)):
        comparison = compare(a, b)
        assert comparison.sentences[0].startswith("A and B are identical, bit for bit")
        assert comparison.same_function


@torch.no_grad()
def test_a_head_that_is_tied_in_one_model_only():
    b = build("mixtral", experts=4)
    config = copy.deepcopy(b.config)
    config.tie_word_embeddings = True
    a = type(b)(config).eval()
    a.load_state_dict(b.state_dict())
    a.tie_weights()
    b.load_state_dict(a.state_dict())
    assert compare(a, b).same_function
    assert compare(b, a).same_function
    b.lm_head.weight.normal_()
    for comparison in (compare(a, b), compare(b, a)):
        kinds = {tensor.name: tensor.kind for tensor in comparison.tensors if tensor.kind != "identical"}
        assert kinds == {"lm_head.weight": "unrelated"}
        assert not comparison.same_function


def test_layers_that_only_one_model_has():
    a, b = build("mixtral", experts=4), build("mixtral", experts=4, seed=5)
    config = copy.deepcopy(a.config)
    config.num_hidden_layers = 4
    deeper = type(a)(config).eval()
    deeper.load_state_dict(a.state_dict(), strict=False)
    comparison = compare(a, deeper)
    assert [layer.note for layer in comparison.layers] == [None, None, None, "A has no such layer"]
    assert not comparison.same_function
    assert not compare(a, b).related


@pytest.mark.parametrize(
    ("order", "sentence"),
    [
        ([0, 1, 2], "A and B are identical, bit for bit"),
        ([0, 2, 1], "layers of model.layers stand in another order in B: layer 1 is 2 of A and layer 2 is 1 of A"),
        ([0, 1, 1, 2], "B is deeper than A: layer 2 of model.layers in B repeats layer 1 of A"),
    ],
)
def test_layers_in_another_order_or_repeated(order, sentence):
    a = build("mixtral", experts=4)
    config = copy.deepcopy(a.config)
    config.num_hidden_layers = len(order)
    b = type(a)(config).eval()
    b.load_state_dict(a.state_dict(), strict=False)
    for layer, source in zip(b.model.layers, order, strict=True):
        layer.load_state_dict(a.model.layers[source].state_dict())
    comparison = compare(a, b)
    assert comparison.sentences[0].startswith(sentence)
    assert kinds(comparison) == {"identical"}
    assert comparison.same_function == (order == [0, 1, 2])


def test_a_far_expert_makes_no_copy_of_a_near_one():
    experts = [ExpertComparison(0, "changed", 1, 0.7), ExpertComparison(1, "identical", 1)]
    assert [expert.kind for expert in _name_slots(experts)] == ["moved", "identical"]
    near = [replace(experts[0], change=0.1), experts[1]]
    assert [expert.kind for expert in _name_slots(near)] == ["moved", "copied"]


def test_widths_that_differ_are_named():
    a, b = build("mixtral", experts=4), build("qwen3_moe", experts=4)
    comparison = compare(a, b)
    assert any("32 x 48 in A and 32 x 24 in B" in sentence for sentence in comparison.sentences)
    assert not any("unrelated to every expert" in sentence for sentence in comparison.sentences)
    assert any("A is a MixtralForCausalLM, B a Qwen3MoeForCausalLM" in sentence for sentence in comparison.sentences)


@torch.no_grad()
def test_parts_of_a_layer_that_only_one_model_has(monkeypatch):
    monkeypatch.setitem(SIZES, "intermediate_size", 24)
    a, b = build("qwen2_moe", experts=4), build("mixtral", experts=4)
    shared = "model.layers.1.mlp.shared_expert.up_proj.weight"
    assert shared in {tensor.name for tensor in compare(a, b).tensors if tensor.missing_in == "B"}
    assert [e.kind for e in compare(b, a).layers[1].shared_experts] == ["unrelated"]


def test_command(qwen, tmp_path, capsys):
    qwen.save_pretrained(tmp_path / "a")
    plants.planted(qwen, {2: plants.swapped})[0].save_pretrained(tmp_path / "b")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert main(["compare", a, b, "--plot", str(tmp_path / "picture.png"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document.keys() == {"sentences", "related", "same_function", "layers", "tensors"}
    expert = document["layers"][0]["experts"][2]
    assert expert.keys() == {"slot", "kind", "source", "change", "units", "z"}
    assert (expert["kind"], expert["source"]) == ("gate_up_swapped", 2)
    assert (tmp_path / "picture.png").stat().st_size > 1000
    assert main(["compare", a, b, "--exit-code", "--table"]) == 1
    assert "gate_up_swapped" in capsys.readouterr().out
    assert main(["compare", a, a, "--exit-code"]) == 0


def test_align_says_why_where_no_order_brings_experts_near(qwen, tmp_path, capsys):
    qwen.save_pretrained(tmp_path / "a")
    broken = plants.planted(qwen, dict.fromkeys(range(6), plants.swapped))[0]
    for name, b in {"swapped": broken, "moved": scramble(copy.deepcopy(qwen))[0]}.items():
        b.save_pretrained(tmp_path / name)
        arguments = [str(tmp_path / "a"), str(tmp_path / name)]
        assert main(["align", *arguments, "-o", str(tmp_path / "o"), "--overwrite"]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        if name == "swapped":
            assert last.startswith("gate_proj and up_proj are swapped in all 6 experts in every layer")
        else:
            assert last == f"what else differs: hf-moe-lmc compare {' '.join(arguments)}"


def test_picture_of_any_comparison(tmp_path):
    a = build("mixtral", experts=4)
    b = build("mixtral", experts=2)
    plot_comparison(compare(a, b), tmp_path / "fewer.svg")
    plot_comparison(compare(b, a), tmp_path / "more.svg")
    assert "missing" in (tmp_path / "fewer.svg").read_text()
