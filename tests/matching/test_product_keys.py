"""Experts that two keys choose: one order moves the keys of both, and nothing else does."""

from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.errors import UnsupportedArchitectureError
from hf_moe_lmc.matching import align_layers, layer_distance
from hf_moe_lmc.moe import ExpertBank, MoeLayer, Router, SymmetryGroup, act
from hf_moe_lmc.symmetry import Permutation
from tests.layers import derangement, same_weights

KEYS, HIDDEN = 7, 13


def build(seed: int = 0) -> MoeLayer:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return MoeLayer(
        Router(draw(KEYS, 2 * HIDDEN)),
        ExpertBank(draw(KEYS, KEYS, HIDDEN), draw(KEYS, HIDDEN, KEYS)),
        group=SymmetryGroup(product_keys=True, router_translation=True),
    )


def naive_forward(layer: MoeLayer, x: torch.Tensor, top_k: int = 3) -> torch.Tensor:
    """The answer for one token: softmax over the best sums of a first and a second key, expert (i, j) of one unit."""
    first, second = (keys @ x for keys in layer.router.weight.chunk(2, dim=1))
    scores, chosen = (first[:, None] + second[None, :]).flatten().topk(top_k)
    output = torch.zeros_like(x)
    for weight, expert in zip(scores.softmax(0), chosen.tolist(), strict=True):
        i, j = divmod(expert, KEYS)
        output += weight * torch.relu(layer.experts.up_proj[i, j] @ x) * layer.experts.down_proj[i, :, j]
    return output


def test_a_random_element_preserves_the_function():
    layer, x = build(), torch.randn(HIDDEN, generator=torch.Generator().manual_seed(1))
    symmetry = derangement(layer)
    assert torch.allclose(naive_forward(act(symmetry, layer), x), naive_forward(layer, x), atol=1e-5)
    alone = replace(symmetry, units=derangement(layer, seed=5).units)
    assert not torch.allclose(naive_forward(act(alone, layer), x), naive_forward(layer, x), atol=1e-2)


@pytest.mark.parametrize("method", ["gate", "gram", "auto"])
def test_a_planted_element_is_found(method):
    layer, planted = build(), derangement(build())
    found = align_layers(layer, act(planted, layer), method)
    assert found.symmetry == planted.inverse()
    assert found.distance_after == 0
    assert same_weights(act(found.symmetry, act(planted, layer)), layer)


def test_units_follow_the_order_of_keys():
    """Also where each slot alone would fit better with an order of its own."""
    a, b = build(0), build(1)
    found = align_layers(a, b, "gate")
    order = found.symmetry.experts.index
    assert all(torch.equal(units, order) for units in found.symmetry.units.permutation.index)
    assert found.distance_after == pytest.approx(layer_distance(a, act(found.symmetry, b)), rel=1e-6)
    given = align_layers(a, b, Permutation(order.flip(0))).symmetry
    assert all(torch.equal(units, order.flip(0)) for units in given.units.permutation.index)


def test_the_joint_optimum_is_refused_by_name():
    with pytest.raises(UnsupportedArchitectureError, match=r'"joint" order of product keys is a quadratic assignment'):
        align_layers(build(0), build(1), "joint")
