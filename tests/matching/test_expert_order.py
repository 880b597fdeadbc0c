from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.matching import match_experts
from hf_moe_lmc.matching.expert_order import gate_cost, gram_cost, joint_similarity
from hf_moe_lmc.matching.unit_matching import match_units
from hf_moe_lmc.moe import act
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation
from tests.layers import LAYER_KINDS


@pytest.fixture(params=LAYER_KINDS)
def layers(request):
    build = LAYER_KINDS[request.param]
    return build(seed=0), build(seed=1)


def test_gate_cost_equals_equation_10(layers):
    a, b = (layer.router for layer in layers)
    for i in range(5):
        for j in range(5):
            square = ((a.weight[i] - a.weight.mean(0)) - (b.weight[j] - b.weight.mean(0))).square().sum()
            if a.bias is not None:
                square += ((a.bias[i] - a.bias.mean()) - (b.bias[j] - b.bias.mean())) ** 2
            torch.testing.assert_close(gate_cost(a, b)[i, j], square.sqrt())


def test_gate_cost_of_a_sigmoid_router_is_not_centred(layers):
    a, b = (replace(layer.router, scoring="sigmoid", bias=None) for layer in layers)
    torch.testing.assert_close(gate_cost(a, b)[1, 2], (a.weight[1] - b.weight[2]).norm())


def test_gram_cost_equals_equation_11(layers):
    a, b = (layer.experts for layer in layers)
    cost = gram_cost(a, b)

    def inward(matrix, bias, e):
        return matrix[e] if bias is None else torch.cat([matrix[e], bias[e][:, None]], dim=1)

    for i in range(5):
        for j in range(5):
            up_a, up_b = inward(a.up_proj, a.up_bias, i), inward(b.up_proj, b.up_bias, j)
            down_a, down_b = inward(a.down_proj, a.down_bias, i), inward(b.down_proj, b.down_bias, j)
            square = (up_a.T @ up_a - up_b.T @ up_b).square().sum()
            square += (down_a @ down_a.T - down_b @ down_b.T).square().sum()
            if a.gate_proj is not None:
                gate_a, gate_b = a.gate_proj[i], b.gate_proj[j]
                square += (gate_a.T @ gate_a - gate_b.T @ gate_b).square().sum()
            torch.testing.assert_close(cost[i, j], square.sqrt())


def test_gram_cost_ignores_the_order_of_units(layers):
    a, b = layers[0].experts, layers[1].experts
    units = Permutation.random_derangement(5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gram_cost(a, b.permute_units(units)), gram_cost(a, b))


def test_joint_similarity_is_the_best_inner_product(layers):
    a, b = layers
    table = joint_similarity(a, b)
    rows = zip(*((layer.router.centred().weight, layer.router.centred().bias) for layer in layers), strict=True)
    (weight_a, weight_b), (bias_a, bias_b) = rows
    for i in range(5):
        for j in range(5):
            expert_a = a.experts.map(lambda tensor, i=i: tensor[i : i + 1])
            expert_b = b.experts.map(lambda tensor, j=j: tensor[j : j + 1])
            matched = expert_b.permute_units(match_units(expert_a, expert_b))
            expected = sum((x * matched.tensors()[name]).sum() for name, x in expert_a.tensors().items())
            expected += weight_a[i] @ weight_b[j] + (0 if bias_a is None else bias_a[i] * bias_b[j])
            torch.testing.assert_close(table[i, j], expected)


@pytest.mark.parametrize("method", ["gate", "gram", "joint"])
def test_planted_order_is_found(layers, method):
    layer = layers[0]
    planted = MoeSymmetry.random_derangement(*layer.symmetry_shape, generator=torch.Generator().manual_seed(0))
    assert match_experts(layer, act(planted, layer), method) == planted.experts.inverse()


def test_units_keeps_the_order(layers):
    assert match_experts(*layers, "units").is_identity
