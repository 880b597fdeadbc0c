from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.adapters import alignable_layers, moe_layers
from hf_moe_lmc.moe import act
from hf_moe_lmc.verification.expert_probe import experts_difference
from tests import families, models
from tests.layers import derangement


def layer_of(name: str):
    model = models.build(name) if name in models.MODELS else families.build(name, dtype=torch.float64)
    return moe_layers(model)[-1].read(model.state_dict())


NAMES = ["mixtral", "deepseek_v3", "gpt_oss", "dbrx", "switch_transformers", "moe_gpt2 shared"]


@pytest.mark.parametrize("name", NAMES)
def test_a_symmetry_is_no_difference(name):
    layer = layer_of(name)
    assert experts_difference(layer, act(derangement(layer, 1), layer)) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_every_changed_tensor_is_a_difference(name):
    layer = layer_of(name)
    for part in ("experts", "router", *(["shared_experts"] if layer.shared_experts else [])):
        owner = getattr(layer, part)
        for field, tensor in owner.tensors().items():
            changed = tensor.clone(memory_format=torch.contiguous_format)
            changed.view(-1)[3] += 0.5
            spoilt = replace(layer, **{part: replace(owner, **{field: changed})})
            assert experts_difference(layer, spoilt) > 1e-4, field


@pytest.mark.parametrize("name", NAMES)
def test_experts_without_their_router_are_a_difference(name):
    layer = layer_of(name)
    moved = act(derangement(layer, 1), layer)
    assert experts_difference(layer, replace(moved, router=layer.router)) > 0.01


def test_experts_of_fixed_order_are_paired_as_they_stand():
    layer = layer_of("nllb_moe")
    assert layer.group.fixed_experts
    assert experts_difference(layer, act(derangement(layer, 1), layer)) < 1e-12
    moved = act(derangement(replace(layer, group=replace(layer.group, fixed_experts=False)), 1), layer)
    assert experts_difference(layer, moved) > 0.01


def test_a_dense_layer_is_probed():
    model = models.build("qwen2_moe")
    layer = next(spec for spec in alignable_layers(model) if spec.router is None).read(model.state_dict())
    assert experts_difference(layer, act(derangement(layer, 1), layer)) < 1e-12
    changed = layer.experts.down_proj.clone()
    changed[0, 2, 3] *= -1
    assert experts_difference(layer, replace(layer, experts=replace(layer.experts, down_proj=changed))) > 1e-4


def test_a_router_translation_is_none_where_it_is_a_symmetry():
    layer = layer_of("mixtral")
    router = replace(layer.router, weight=layer.router.weight + torch.randn(layer.router.weight.shape[1]))
    assert experts_difference(layer, replace(layer, router=router)) < 1e-12
    layer = layer_of("deepseek_v3")
    router = replace(layer.router, weight=layer.router.weight + torch.randn(layer.router.weight.shape[1]))
    assert experts_difference(layer, replace(layer, router=router)) > 0.01


def test_nan_is_an_infinite_difference():
    layer = layer_of("mixtral")
    spoilt = replace(layer, experts=layer.experts.map(lambda tensor: tensor * torch.nan))
    assert experts_difference(layer, spoilt) == torch.inf
