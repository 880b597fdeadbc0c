from copy import deepcopy

import pytest
import torch

from hf_moe_lmc import scramble, verify
from hf_moe_lmc.adapters import moe_layers
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError
from hf_moe_lmc.verification import random_batches
from tests import families, models
from tests.test_families import SUPPORTED

# Each takes its inputs otherwise: embeddings only.
OWN_INPUTS = {"dots3_note.vision", "qwen3_omni_moe.talker"}


def pair(name: str, dtype: torch.dtype = torch.float32):
    """A model twice."""
    before = models.build(name, dtype=dtype) if name in models.MODELS else families.build(name, dtype=dtype)
    return before, deepcopy(before)


@pytest.mark.parametrize("name", [*SUPPORTED, *models.MODELS])
def test_a_scrambled_model_is_equal(name):
    before, after = pair(name)
    scramble(after, seed=3)
    batches = {"own": [families.inputs(before, name)]} if name in OWN_INPUTS else None
    found = verify(before, after, batches)
    assert found.equal
    assert [layer.name for layer in found.layers] == [
        spec.name for spec in moe_layers(before) if not spec.group.fixed_units
    ]
    # Zaya's router reports tokens that skip the experts as tokens of expert 0, with weight 0.
    assert all(layer.routing_agreement == 1 for layer in found.layers) or name == "zaya"


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


@pytest.mark.parametrize("name", CONTROLS)
def test_one_flipped_weight_is_not_equal(name):
    before, after = pair(name)
    spec = moe_layers(after)[0]
    with torch.no_grad():
        after.state_dict()[f"{spec.experts.name}.down_proj"][1, 2, 3] *= -1
    found = verify(before, after)
    assert not found.equal
    assert found.layers[0].experts_difference > 1e-4
    # Found where it is: the layers above are fed the same inputs.
    assert found.layers[0].difference > 1e-4
    assert all(layer.difference == 0 for layer in found.layers[1:])


def test_a_weight_outside_the_experts_is_not_equal():
    before, after = pair("mixtral")
    with torch.no_grad():
        after.lm_head.weight[5] *= -1
    found = verify(before, after)
    assert not found.equal
    assert all(layer.difference == 0 for layer in found.layers)


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
