import pytest
import torch

from hf_moe_lmc.merging import token_weights
from tests.layers import LAYER_KINDS, naive_expert
from tests.merging.endpoints import statistics


def test_weights_of_tokens():
    routed = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 0]]).bool()
    found = token_weights(routed)
    assert found.sum(dim=0).tolist() == pytest.approx([1, 1])
    assert found[:, 1].tolist() == pytest.approx([0.25] * 4)  # a dead expert sees the layer's tokens
    assert found[:, 0].tolist() == pytest.approx([17 / 67] * 3 + [16 / 67])


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_outputs_equal_the_loop(kind):
    layer = LAYER_KINDS[kind]()
    found = statistics(layer, 7).experts
    expected = torch.stack([naive_expert(layer.experts, 3, token) for token in found.tokens])
    torch.testing.assert_close(found.outputs(layer.experts, 3), expected)


def test_one_expert_of_a_bank():
    layer = LAYER_KINDS["swiglu"]()
    found = statistics(layer, 7).experts
    alone, bank = found.expert(3), layer.experts.map(lambda tensor: tensor[3, None])
    assert torch.equal(alone.outputs(bank, 0), found.outputs(layer.experts, 3))
    assert torch.equal(alone.weights_of(bank, 0), found.weights_of(layer.experts, 3))
