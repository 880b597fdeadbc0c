import torch

from hf_moe_lmc.merging import rescale_outputs
from tests.layers import LAYER_KINDS, naive_expert


def test_every_expert_answers_that_much_more():
    layer = LAYER_KINDS["mlp, shared experts"]()
    factor, token = torch.arange(1.0, 6.0, dtype=torch.float64), torch.randn(13, dtype=torch.float64)
    scaled = rescale_outputs(layer, factor, torch.tensor([3.0], dtype=torch.float64))
    for e in range(5):
        torch.testing.assert_close(
            naive_expert(scaled.experts, e, token), factor[e] * naive_expert(layer.experts, e, token)
        )
    torch.testing.assert_close(
        naive_expert(scaled.shared_experts, 0, token), 3 * naive_expert(layer.shared_experts, 0, token)
    )
    assert scaled.router is layer.router
