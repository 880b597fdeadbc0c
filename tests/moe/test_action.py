from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.moe import Router, act
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation
from tests.layers import LAYER_KINDS, naive_forward, same_weights


@pytest.fixture(params=LAYER_KINDS)
def layer(request):
    return LAYER_KINDS[request.param]()


@pytest.fixture
def tokens():
    return torch.randn(11, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def draw(layer, seed: int) -> MoeSymmetry:
    return MoeSymmetry.random_derangement(*layer.symmetry_shape, generator=torch.Generator().manual_seed(seed))


def difference(a, b, tokens) -> float:
    expected = naive_forward(a, tokens)
    return float((naive_forward(b, tokens) - expected).abs().max() / expected.abs().max())


def test_action_law(layer):
    g, h = draw(layer, 0), draw(layer, 1)
    assert same_weights(act(g @ h, layer), act(g, act(h, layer)))
    assert same_weights(act(g.inverse(), act(g, layer)), layer)
    assert same_weights(act(MoeSymmetry.identity(*layer.symmetry_shape), layer), layer)
    assert not same_weights(act(g, layer), layer)


def test_function_is_preserved(layer, tokens):
    assert difference(layer, act(draw(layer, 0), layer), tokens) < 1e-13


def test_control_experts_without_router(layer, tokens):
    moved = replace(act(draw(layer, 0), layer), router=layer.router)
    assert difference(layer, moved, tokens) > 0.1


def test_control_router_without_experts(layer, tokens):
    moved = replace(layer, router=layer.router.permute_experts(draw(layer, 0).experts))
    assert difference(layer, moved, tokens) > 0.1


def test_control_units_of_down_proj_left_behind(layer, tokens):
    moved = layer.experts.permute_units(draw(layer, 0).units)
    broken = replace(layer, experts=replace(moved, down_proj=layer.experts.down_proj))
    assert difference(layer, broken, tokens) > 0.1


def test_sizes_must_agree(layer):
    experts, units, shared = layer.symmetry_shape
    with pytest.raises(ValueError, match="cannot act"):
        act(MoeSymmetry.identity(experts, units + 1, shared), layer)


def translated(router: Router) -> Router:
    shift = torch.randn(13, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return replace(router, weight=router.weight + shift, bias=None if router.bias is None else router.bias + 0.7)


def test_translation_is_a_symmetry_of_softmax(layer, tokens):
    moved = replace(layer, router=translated(layer.router))
    assert difference(layer, moved, tokens) < 1e-13
    assert difference(layer, replace(layer, router=layer.router.centred()), tokens) < 1e-13
    assert torch.allclose(moved.router.centred().weight, layer.router.centred().weight, atol=1e-14)


def test_control_translation_is_no_symmetry_of_sigmoid(layer, tokens):
    layer = replace(layer, router=replace(layer.router, scoring="sigmoid"))
    assert difference(layer, replace(layer, router=translated(layer.router)), tokens) > 0.1
    assert layer.router.centred() is layer.router


def test_permutations_never_round():
    """Every entry of a bfloat16 layer is found again, bit for bit."""
    layer = LAYER_KINDS["mlp, shared experts"](dtype=torch.bfloat16)
    moved = act(draw(layer, 0), layer)
    for name, tensor in layer.tensors().items():
        assert torch.equal(tensor.flatten().sort().values, moved.tensors()[name].flatten().sort().values), name


def test_expert_order_alone():
    layer = LAYER_KINDS["mlp"](E=3)
    order = Permutation(torch.tensor([2, 0, 1]))
    moved = act(replace(MoeSymmetry.identity(*layer.symmetry_shape), experts=order), layer)
    for slot, expert in enumerate([2, 0, 1]):
        assert torch.equal(moved.experts.up_proj[slot], layer.experts.up_proj[expert])
        assert torch.equal(moved.router.weight[slot], layer.router.weight[expert])
