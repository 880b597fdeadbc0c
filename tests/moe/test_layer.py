from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.moe import act
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation, SignedPermutation
from tests.layers import LAYER_KINDS, derangement, naive_forward, same_weights


@pytest.fixture(params=LAYER_KINDS)
def layer(request):
    return LAYER_KINDS[request.param]()


@pytest.fixture
def tokens():
    return torch.randn(11, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def neutral(layer) -> MoeSymmetry:
    return MoeSymmetry.identity(*layer.symmetry_shape)


def difference(a, b, tokens) -> float:
    expected = naive_forward(a, tokens)
    return float((naive_forward(b, tokens) - expected).abs().max() / expected.abs().max())


def test_action_law(layer):
    g, h = derangement(layer, 0), derangement(layer, 1)
    assert same_weights(act(g @ h, layer), act(g, act(h, layer)))
    assert same_weights(act(g.inverse(), act(g, layer)), layer)
    assert same_weights(act(neutral(layer), layer), layer)
    assert not same_weights(act(g, layer), layer)


def test_function_is_preserved(layer, tokens):
    assert difference(layer, act(derangement(layer, 0), layer), tokens) < 1e-13


def test_control_experts_without_router(layer, tokens):
    moved = replace(act(derangement(layer, 0), layer), router=layer.router)
    assert difference(layer, moved, tokens) > 0.1


def test_control_router_without_experts(layer, tokens):
    moved = replace(layer, router=layer.router.permute_experts(derangement(layer, 0).experts))
    assert difference(layer, moved, tokens) > 0.1


def test_control_units_of_down_proj_left_behind(layer, tokens):
    moved = layer.experts.permute_units(derangement(layer, 0).units)
    broken = replace(layer, experts=replace(moved, down_proj=layer.experts.down_proj))
    assert difference(layer, broken, tokens) > 0.1


def test_sizes_must_agree(layer):
    experts, units, *others = layer.symmetry_shape
    with pytest.raises(ValueError, match="cannot act"):
        act(MoeSymmetry.identity(experts, units + 1, *others), layer)


SOFTMAX_KINDS = [kind for kind in LAYER_KINDS if LAYER_KINDS[kind]().group.router_translation]


def translated(layer):
    """A shift of all router rows, as large as the rows."""
    shift = torch.randn(13, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    router = layer.router
    bias = None if router.bias is None else router.bias + 0.7
    return replace(layer, router=replace(router, weight=router.weight + shift, bias=bias))


@pytest.mark.parametrize("kind", SOFTMAX_KINDS)
def test_translation_is_a_symmetry_of_softmax(kind, tokens):
    layer = LAYER_KINDS[kind]()
    assert difference(layer, translated(layer), tokens) < 1e-13
    assert difference(layer, layer.in_gauge(), tokens) < 1e-13
    torch.testing.assert_close(translated(layer).in_gauge().tensors(), layer.in_gauge().tensors())


def test_control_translation_is_no_symmetry_of_sigmoid(tokens):
    layer = LAYER_KINDS["grouped sigmoid"]()
    assert difference(layer, translated(layer), tokens) > 0.1
    assert torch.equal(layer.in_gauge().router.weight, layer.router.weight)


def test_selection_biases_mean_nothing_but_their_differences(tokens):
    layer = LAYER_KINDS["grouped sigmoid"]()
    moved = replace(layer, router=replace(layer.router, selection_bias=layer.router.selection_bias + 3.0))
    assert difference(layer, moved, tokens) == 0
    assert difference(layer, layer.in_gauge(), tokens) == 0
    torch.testing.assert_close(moved.in_gauge().router.selection_bias, layer.in_gauge().router.selection_bias)


def test_control_selection_biases_left_behind(tokens):
    layer = LAYER_KINDS["grouped sigmoid"]()
    moved = act(derangement(layer), layer)
    broken = replace(moved, router=replace(moved.router, selection_bias=layer.router.selection_bias))
    assert difference(layer, broken, tokens) > 0.1


def test_control_an_order_that_breaks_groups(tokens):
    layer = LAYER_KINDS["grouped sigmoid"]()
    order = Permutation(torch.tensor([0, 2, 4, 1, 3, 5]))
    assert difference(layer, act(replace(neutral(layer), experts=order), layer), tokens) > 0.01


def test_signs_of_gated_units(tokens):
    """Free where up_proj and down_proj change together; not with gate_proj, and not with up_proj alone."""
    layer = LAYER_KINDS["swiglu"]()
    flipped = SignedPermutation(Permutation.identity(5, 7), torch.full((5, 7), -1, dtype=torch.int8))
    assert difference(layer, act(replace(neutral(layer), units=flipped), layer), tokens) == 0
    for name in ("gate_proj", "up_proj", "down_proj"):
        wrong = replace(layer.experts, **{name: -getattr(layer.experts, name)})
        assert difference(layer, replace(layer, experts=wrong), tokens) > 0.1


def test_units_without_gate_have_no_free_sign():
    layer = LAYER_KINDS["mlp"]()
    flipped = SignedPermutation(Permutation.identity(5, 7), torch.full((5, 7), -1, dtype=torch.int8))
    with pytest.raises(ValueError, match="no free sign"):
        act(replace(neutral(layer), units=flipped), layer)


def test_permutations_never_round():
    """Every entry of a bfloat16 layer is found again, bit for bit, but for its sign."""
    layer = LAYER_KINDS["swiglu, shared experts"](dtype=torch.bfloat16)
    moved = act(derangement(layer, 0), layer)
    for name, tensor in layer.tensors().items():
        assert torch.equal(tensor.abs().flatten().sort().values, moved.tensors()[name].abs().flatten().sort().values), (
            name
        )


def test_expert_order_alone():
    layer = LAYER_KINDS["mlp"](E=3)
    order = Permutation(torch.tensor([2, 0, 1]))
    moved = act(replace(neutral(layer), experts=order), layer)
    for slot, expert in enumerate([2, 0, 1]):
        assert torch.equal(moved.experts.up_proj[slot], layer.experts.up_proj[expert])
        assert torch.equal(moved.router.weight[slot], layer.router.weight[expert])
