from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from hf_moe_lmc import scramble, verify
from hf_moe_lmc.adapters import alignable_layers, experts_per_token, moe_layers, router_of
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError
from hf_moe_lmc.verification import OutputDifference, random_batches
from hf_moe_lmc.verification.block_comparison import selected_experts
from tests import families, models

# Each takes its inputs otherwise: embeddings only; patches in a grid.
OWN_INPUTS = {"qwen3_omni_moe.talker", "dots3_note.vision"}

# Zaya's router reports tokens that skip the experts as tokens of expert 0, with weight 0; Doge's reports no choices,
# and VitPose has none.
WITHOUT_CHOICES = {"zaya", "doge", "vitpose_backbone"}


def pair(name: str, dtype: torch.dtype = torch.float32):
    """A model twice."""
    before = models.build(name, dtype=dtype) if name in models.MODELS else families.build(name, dtype=dtype)
    return before, deepcopy(before)


# One of every layout and kind of router; the battery holds the symmetries of all families.
SCRAMBLED = [
    "mixtral",
    "qwen2_moe",
    "gpt_oss",
    "deepseek_v3",
    "dbrx",
    "jetmoe",
    "switch_transformers",
    "nllb_moe",
    "zaya",
]


@pytest.mark.parametrize("name", [*(family for family in SCRAMBLED if family in families.supported()), *models.MODELS])
def test_a_scrambled_model_is_equal(name):
    before, after = pair(name)
    scramble(after, seed=3)
    batches = {"own": [families.inputs(before, name)]} if name in OWN_INPUTS else None
    found = verify(before, after, batches)
    assert found.equal
    assert [layer.name for layer in found.layers] == [spec.name for spec in alignable_layers(before)]
    agreement = {layer.routing_agreement for layer in found.layers if layer.routing_agreement is not None}
    assert agreement == {1.0} or name in WITHOUT_CHOICES


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss", "moe_vit shared"])
def test_float64_is_equal(name):
    before, after = pair(name, torch.float64)
    scramble(after)
    assert verify(before, after).equal


CONTROLS = ["mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "moe_vit sparse", "moe_gpt2 shared"]


@pytest.mark.parametrize("name", CONTROLS)
def test_experts_without_their_router_are_not_equal(name):
    before, after = pair(name)
    spec = moe_layers(after)[-1]
    routers = {key: after.state_dict()[key].clone() for _, key in spec.router.tensors}
    scramble(after)
    after.load_state_dict(routers, strict=False)
    found = verify(before, after)
    assert not found.equal
    assert found.layers[-1].difference > 0.1
    # The routers are as they were; nothing else is wrong.
    assert all(layer.difference < 1e-5 for layer in found.layers[:-1])


def reached_experts(model, spec) -> list[int]:
    """Numbers of the experts of one layer that the random inputs of `verify` reach."""
    chosen, top_k = [], experts_per_token(model, spec)

    def note(module, args, output):
        chosen.append(selected_experts(output, spec.router.num_experts, top_k))

    with torch.no_grad(), router_of(model, spec).register_forward_hook(note):
        for batch in random_batches(model):
            model(**batch)
    return torch.cat(chosen).unique().tolist()


def flip_weight(model, spec, expert: int) -> None:
    with torch.no_grad():
        model.state_dict()[f"{spec.experts.name}.down_proj"][expert, 2, 3] *= -1


def by_name(found) -> dict:
    return {layer.name: layer for layer in found.layers}


@pytest.mark.parametrize("name", CONTROLS)
def test_one_flipped_weight_is_not_equal(name):
    before, after = pair(name)
    spec = moe_layers(after)[0]
    flip_weight(after, spec, reached_experts(before, spec)[0])
    found = verify(before, after)
    layers = by_name(found)
    flipped = layers.pop(spec.name)
    assert not found.equal
    assert flipped.experts_difference > 1e-4
    # Found where it is: the layers above are fed the same inputs.
    assert flipped.difference > 1e-4
    assert all(layer.difference == 0 for layer in layers.values())


def test_one_flipped_weight_of_an_expert_that_no_token_chooses_is_not_equal():
    before, after = pair("deepseek_v3")
    spec = moe_layers(after)[0]
    idle = set(range(spec.router.num_experts)) - set(reached_experts(before, spec))
    flip_weight(after, spec, min(idle))
    found = verify(before, after)
    assert not found.equal
    assert by_name(found)[spec.name].experts_difference > 1e-4
    assert by_name(found)[spec.name].difference == 0
    assert found.outputs["random"].largest == 0


def test_one_flipped_weight_of_a_dense_layer_is_not_equal():
    before, after = pair("qwen2_moe")
    with torch.no_grad():
        after.model.layers[1].mlp.down_proj.weight[2, 3] *= -1
    found = verify(before, after)
    flipped = by_name(found)["model.layers.1.mlp"]
    assert not found.equal
    assert min(flipped.difference, flipped.experts_difference) > 1e-4
    assert flipped.routing_agreement is None
    assert found.changed_tensors == ()


def test_a_few_positions_may_differ():
    """Where rounding decides a near tie of a router anew: gpt_oss scrambled, 5 of 1024 tokens by 4e-3, others 3e-7."""
    found = verify(*pair("mixtral"))
    assert replace(found, outputs={"random": OutputDifference(median=3e-7, largest=4e-3)}).equal
    assert not replace(found, outputs={"random": OutputDifference(median=4e-3, largest=4e-3)}).equal


def test_a_weight_outside_the_experts_is_not_equal():
    before, after = pair("mixtral")
    with torch.no_grad():
        after.lm_head.weight[5] *= -1
    found = verify(before, after)
    assert not found.equal
    assert found.changed_tensors == ("lm_head.weight",)
    assert found.outputs["random"].median > found.output_tolerance
    assert all(layer.difference == 0 for layer in found.layers)


def test_a_weight_that_no_input_reaches_is_not_equal():
    """The embedding of a special token, which is never drawn."""
    before, after = pair("mixtral")
    with torch.no_grad():
        after.model.embed_tokens.weight[before.config.eos_token_id] *= -1
    found = verify(before, after)
    assert found.outputs["random"].largest == 0
    assert found.changed_tensors == ("model.embed_tokens.weight",)
    assert not found.equal


def test_another_model_routes_otherwise():
    found = verify(models.build("mixtral", dtype=torch.float32), models.build("mixtral", seed=1, dtype=torch.float32))
    assert not found.equal
    assert all(layer.routing_agreement < 0.9 for layer in found.layers)


def test_nan_is_not_equal():
    before, after = pair("mixtral")
    with torch.no_grad():
        after.model.layers[1].mlp.experts.down_proj[0, 0, 0] = torch.nan
    found = verify(before, after)
    assert not found.equal
    assert found.layers[1].difference == float("inf")


def test_models_are_left_without_hooks():
    before, after = pair("mixtral")
    verify(before, after)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*before.modules(), *after.modules()])


def test_a_pair_that_cannot_be_compared_is_refused():
    before, after = pair("mixtral")
    with pytest.raises(IncompatiblePairError, match="before is a MixtralForCausalLM, after a Qwen2MoeForCausalLM"):
        verify(before, models.build("qwen2_moe"))
    with pytest.raises(IncompatiblePairError, match=r"torch\.float32, after torch\.float64"):
        verify(before, after.double())
    with pytest.raises(BadInputError, match=r"not in torch\.bfloat16"):
        verify(deepcopy(before).bfloat16(), deepcopy(before).bfloat16())
    larger = families.configuration("mixtral", 12)
    larger.vocab_size += 1
    with pytest.raises(IncompatiblePairError, match=r"tensor lm_head\.weight has the shape \(97, 32\) before"):
        verify(families.build("mixtral"), type(before)(larger))


def test_a_layer_that_no_input_reaches_is_not_called_equal():
    before, after = pair("mixtral")
    before.model.layers = before.model.layers[:1]
    before.config.num_hidden_layers = 1
    before.extra = torch.nn.ModuleDict({"unused": after.model.layers[1]})
    after_too = deepcopy(before)
    with pytest.raises(BadInputError, match=r"extra\.unused\.mlp: no input reaches it"):
        verify(before, after_too)


def test_random_tokens_are_never_special():
    model = models.build("moe_gpt2 sparse")
    tokens = torch.cat([batch["input_ids"].flatten() for batch in random_batches(model)])
    assert set(tokens.tolist()) == set(range(models.VOCABULARY)) - {0, 1}


def test_a_model_of_other_inputs_is_refused():
    """Images in patches, whose size no configuration tells."""
    model = models.build("moe_gpt2 sparse")
    model.main_input_name = "pixel_values"
    with pytest.raises(BadInputError, match="a MoeGPT2LMHeadModel, which takes pixel_values; give batches"):
        random_batches(model)
