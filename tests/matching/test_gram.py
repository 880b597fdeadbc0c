from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_moe_lmc.matching import GaugedLayer, gram
from hf_moe_lmc.matching.gram import (
    ScaledMatrices,
    gram_cost,
    matrices,
    products_are_cheaper,
    sketched_squares,
    squares_by_grams,
    squares_by_products,
)
from hf_moe_lmc.moe import act
from tests.layers import LAYER_KINDS, derangement, scaled_units


@pytest.fixture(params=LAYER_KINDS)
def layers(request):
    build = LAYER_KINDS[request.param]
    return build(seed=0), build(seed=1)


def test_gram_cost_equals_equation_11(layers):
    cost = gram_cost(*GaugedLayer.pair(*layers))
    a, b = (layer.experts for layer in layers)

    def inward(matrix, bias, e):
        return matrix[e] if bias is None else torch.cat([matrix[e], bias[e][:, None]], dim=1)

    for i in range(len(cost)):
        for j in range(len(cost)):
            up_a, up_b = inward(a.up_proj, a.up_bias, i), inward(b.up_proj, b.up_bias, j)
            down_a, down_b = inward(a.down_proj, a.down_bias, i), inward(b.down_proj, b.down_bias, j)
            square = (up_a.T @ up_a - up_b.T @ up_b).square().sum()
            square += (down_a @ down_a.T - down_b @ down_b.T).square().sum()
            if a.gate_proj is not None:
                gate_a, gate_b = inward(a.gate_proj, a.gate_bias, i), inward(b.gate_proj, b.gate_bias, j)
                square += (gate_a.T @ gate_a - gate_b.T @ gate_b).square().sum()
            torch.testing.assert_close(cost[i, j], square.sqrt())


def test_gram_cost_ignores_the_order_and_signs_of_units(layers):
    a, b = layers
    moved = replace(b, experts=b.experts.permute_units(derangement(b).units))
    torch.testing.assert_close(gram_cost(*GaugedLayer.pair(a, moved)), gram_cost(*GaugedLayer.pair(a, b)))


@pytest.mark.parametrize("tile", [8 * 5, 8 * 5 * 4, 2**26])
def test_both_forms_of_the_gram_cost_agree_in_tiles_of_any_size(layers, tile, monkeypatch):
    monkeypatch.setattr(gram, "_TILE_BYTES", tile)
    tiles, cdist = [], torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda a, b, **how: tiles.append(a) or cdist(a, b, **how))
    a, b = map(matrices, GaugedLayer.pair(*layers))
    for x, y in zip(a, b, strict=True):
        near = replace(x, weight=x.weight + 1e-4 * y.weight)
        for other in (x, y, near):
            torch.testing.assert_close(squares_by_products(x, other), squares_by_grams(x, other, torch.float64))
        # Control: differences as small as these are seen.
        assert (squares_by_products(x, near).diagonal() > 0).all()
    assert max(one.nbytes for one in tiles) <= max(tile, 8 * len(a[0].weight))


@pytest.mark.parametrize(("experts", "units", "width"), [(3, 2, 40), (40, 1, 6), (4, 40, 3), (2, 6, 6)])
def test_the_form_with_fewer_operations_is_taken(experts, units, width, monkeypatch):
    """Operations are those that torch counts, and three for each entry that a distance compares."""
    a, b = map(ScaledMatrices, torch.randn(2, experts, units, width, dtype=torch.float64))
    with FlopCounterMode(display=False) as products:
        squares_by_products(a, b)
    monkeypatch.setattr(gram, "_TILE_BYTES", 8 * experts)  # tiles of one entry: no part of the lower triangle
    with FlopCounterMode(display=False) as grams:
        squares_by_grams(a, b, torch.float64)
    entries = experts**2 * width * (width + 1) / 2
    cheaper = products_are_cheaper(experts, units, width)
    assert cheaper == (2 * products.get_total_flops() < grams.get_total_flops() + 3 * entries)
    layer = LAYER_KINDS["mlp, router without bias"](experts, units, width)
    layer = replace(layer, experts=replace(layer.experts, up_bias=None, down_bias=None))
    taken = []
    monkeypatch.setattr(gram, "squares_by_products", lambda a, b: taken.append(True) or squares_by_products(a, b))
    gram_cost(*GaugedLayer.pair(layer, layer))
    assert taken == [True] * 2 * cheaper


def test_sketches_estimate_the_gram_cost(layers):
    """Without bias, and as exactly as their differences say; nothing remains between copies."""
    a, b = layers
    exact = gram_cost(*GaugedLayer.pair(a, b)).square()
    squares = sketched_squares(*GaugedLayer.pair(a, b))
    error = squares.std(dim=0) / len(squares) ** 0.5
    assert ((squares.mean(dim=0) - exact).abs() < 6 * error).all()
    assert (error < 0.5 * exact).all()
    planted = derangement(a)
    copies = sketched_squares(*GaugedLayer.pair(a, act(planted, a)))
    partners = torch.arange(len(exact)), planted.experts.inverse().index
    assert (copies.mean(dim=0)[partners] < 1e-20 * exact.mean()).all()


def test_free_scales_do_not_count(layers):
    """Of units in both forms, and of factors between router and experts in up_proj, down_proj and down_bias."""
    a, b = (replace(layer, group=replace(layer.group, unit_scale_degree=1)) for layer in layers)
    scaled = replace(b, experts=scaled_units(b.experts, 1))
    for function in (gram_cost, sketched_squares):
        torch.testing.assert_close(function(*GaugedLayer.pair(a, scaled)), function(*GaugedLayer.pair(a, b)))
        assert not torch.allclose(function(*GaugedLayer.pair(layers[0], scaled)), function(*GaugedLayer.pair(*layers)))
