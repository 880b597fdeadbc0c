from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_moe_lmc.matching import expert_order, gram, match_experts, solve_assignment
from hf_moe_lmc.matching.expert_order import gate_cost
from hf_moe_lmc.matching.gram import gram_cost, matrices, products_are_cheaper, squares_by_grams, squares_by_products
from hf_moe_lmc.matching.joint import JointTable
from hf_moe_lmc.matching.sketch import is_sure, sketched_squares
from hf_moe_lmc.moe import act
from tests.layers import LAYER_KINDS, derangement
from tests.matching.matched import match_units


@pytest.fixture(params=LAYER_KINDS)
def layers(request):
    build = LAYER_KINDS[request.param]
    return build(seed=0), build(seed=1)


def test_gate_cost_equals_equation_10(layers):
    """Rows centred where the router is a softmax; selection biases, centred too, as one more column."""
    a, b = (layer.in_gauge().router for layer in layers)
    cost = gate_cost(a, b)
    centred = layers[0].group.router_translation
    for i in range(len(cost)):
        for j in range(len(cost)):
            rows = [x.router.weight - (x.router.weight.mean(0) if centred else 0) for x in layers]
            square = (rows[0][i] - rows[1][j]).square().sum()
            for name in ("bias", "selection_bias"):
                values = [getattr(x.router, name) for x in layers]
                if values[0] is not None:
                    square += ((values[0][i] - values[0].mean()) - (values[1][j] - values[1].mean())) ** 2
            torch.testing.assert_close(cost[i, j], square.sqrt())


def test_gram_cost_equals_equation_11(layers):
    a, b = (layer.experts for layer in layers)
    cost = gram_cost(a, b, torch.float64)

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
    a, b = layers[0].experts, layers[1].experts
    units = derangement(layers[1]).units
    torch.testing.assert_close(gram_cost(a, b.permute_units(units), torch.float64), gram_cost(a, b, torch.float64))


@pytest.mark.parametrize("tile", [8 * 5, 8 * 5 * 4, 2**26])
def test_both_forms_of_the_gram_cost_agree_in_tiles_of_any_size(layers, tile, monkeypatch):
    monkeypatch.setattr(gram, "_TILE_BYTES", tile)
    tiles, cdist = [], torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda a, b, **how: tiles.append(a) or cdist(a, b, **how))
    a, b = (matrices(layer.experts) for layer in layers)
    for x, y in zip(a, b, strict=True):
        near = x + 1e-4 * y
        for other in (x, y, near):
            torch.testing.assert_close(squares_by_products(x, other), squares_by_grams(x, other, torch.float64))
        # Control: differences as small as these are seen.
        assert (squares_by_products(x, near).diagonal() > 0).all()
    assert max(one.nbytes for one in tiles) <= max(tile, 8 * len(a[0]))


@pytest.mark.parametrize(("experts", "units", "width"), [(3, 2, 40), (40, 1, 6), (4, 40, 3), (2, 6, 6)])
def test_the_form_with_fewer_operations_is_taken(experts, units, width, monkeypatch):
    """Operations are those that torch counts, and three for each entry that a distance compares."""
    a, b = torch.randn(2, experts, units, width, dtype=torch.float64)
    with FlopCounterMode(display=False) as products:
        squares_by_products(a, b)
    monkeypatch.setattr(gram, "_TILE_BYTES", 8 * experts)  # tiles of one entry: no part of the lower triangle
    with FlopCounterMode(display=False) as grams:
        squares_by_grams(a, b, torch.float64)
    entries = experts**2 * width * (width + 1) / 2
    cheaper = products_are_cheaper(experts, units, width)
    assert cheaper == (2 * products.get_total_flops() < grams.get_total_flops() + 3 * entries)
    bank = LAYER_KINDS["mlp, router without bias"](experts, units, width).experts
    bank = replace(bank, up_bias=None, down_bias=None)
    taken = []
    monkeypatch.setattr(gram, "squares_by_products", lambda a, b: taken.append(True) or squares_by_products(a, b))
    gram_cost(bank, bank, torch.float32)
    assert taken == [True] * 2 * cheaper


def test_sketches_estimate_the_gram_cost(layers):
    """Without bias, and as exactly as their differences say; copies at zero cost are sure, strangers are not."""
    a, b = (layer.experts for layer in layers)
    exact = gram_cost(a, b, torch.float64).square()
    squares = sketched_squares(a, b, torch.float64)
    error = squares.std(dim=0) / len(squares) ** 0.5
    assert ((squares.mean(dim=0) - exact).abs() < 6 * error).all()
    assert (error < 0.5 * exact).all()
    planted = derangement(layers[0])
    copies = sketched_squares(a, a.permute_experts(planted.experts).permute_units(planted.units), torch.float64)
    assert is_sure(copies, planted.experts.inverse())
    assert not is_sure(copies, planted.experts)
    order = solve_assignment(-squares.mean(dim=0)).permutation
    assert not is_sure(squares, order)
    assert match_experts(*layers, "sketch").method == "gram"


@pytest.mark.parametrize("noise", [0.1, 0.5, 2.0, 4.0])
def test_where_a_sketch_is_sure_it_is_the_order_of_gram(noise):
    """And it is sure where experts are siblings, whatever the router rows say."""
    layer = LAYER_KINDS["swiglu"](8, 48, 40)
    generator = torch.Generator().manual_seed(5)
    tensors = layer.tensors().items()
    near = {n: x + noise * torch.randn(x.shape, generator=generator, dtype=x.dtype) for n, x in tensors}
    near["router.weight"] = torch.randn(8, 40, generator=generator, dtype=torch.float64)
    other = act(derangement(layer), layer.with_tensors(near))
    found = match_experts(layer, other, "sketch")
    assert found.order == match_experts(layer, other, "gram").order
    assert (found.method == "sketch") == (noise < 1)
    assert found.gate_agreement < 1


def test_router_rows_that_mislead_do_not_mislead_auto(monkeypatch):
    """Its budget goes to pairs near the order by sketches, so it finds experts that bounds tell nothing about."""
    layer = LAYER_KINDS["swiglu"](24, 16, 48)
    generator = torch.Generator().manual_seed(5)
    tensors = layer.tensors().items()
    near = {n: x + 2 * torch.randn(x.shape, generator=generator, dtype=x.dtype) for n, x in tensors}
    near["router.weight"] = torch.randn(24, 48, generator=generator, dtype=torch.float64)
    planted = derangement(layer)
    other = act(planted, layer.with_tensors(near))
    found = match_experts(layer, other, "auto")
    assert (found.method, found.certified) == ("joint", False)
    assert found.order == planted.experts.inverse()
    assert len(found.pairs) <= 4 * 24
    # Control: beginning with the order by router rows, the budget runs out elsewhere.
    gate = match_experts(layer, other, "gate")
    monkeypatch.setattr(expert_order, "_sketched", lambda *_: (gate, False))
    assert match_experts(layer, other, "auto").order != planted.experts.inverse()


def test_joint_similarity_is_the_best_inner_product(layers):
    a, b = (layer.in_gauge() for layer in layers)
    joint = JointTable.bounded(a, b)
    table, bounds = joint.values, joint.values.clone()
    for pair in torch.cartesian_prod(*[torch.arange(len(table))] * 2).tolist():
        joint.solve(*pair)
    assert (bounds >= table - 1e-12).all()
    rows = a.router.rows() @ b.router.rows().T
    for i in range(len(table)):
        for j in range(len(table)):
            expert_a = a.experts.map(lambda tensor, i=i: tensor[i : i + 1])
            expert_b = b.experts.map(lambda tensor, j=j: tensor[j : j + 1])
            matched = expert_b.permute_units(match_units(expert_a, expert_b, a.group.unit_signs))
            expected = sum((x * matched.tensors()[name]).sum() for name, x in expert_a.tensors().items())
            torch.testing.assert_close(table[i, j], expected + rows[i, j])


@pytest.mark.parametrize("method", ["gate", "gram", "sketch", "joint", "auto"])
def test_planted_order_is_found(layers, method):
    layer = layers[0]
    planted = derangement(layer)
    assert match_experts(layer, act(planted, layer), method).order == planted.experts.inverse()


def test_units_keeps_the_order(layers):
    assert match_experts(*layers, "units").order.is_identity


@pytest.mark.parametrize("method", ["units", "gate", "gram", "sketch", "joint"])
def test_agreement_with_router_rows(layers, method):
    """Of a scrambled copy all of them agree; with another's router, the orders differ as they say."""
    layer, other = layers
    copy = act(derangement(layer), layer)
    found = match_experts(layer, copy, method)
    assert found.gate_agreement == (0 if method == "units" else 1)
    assert (found.table is None) == (method == "units")
    swapped = replace(copy, router=other.router)
    found, gate = (match_experts(layer, swapped, which) for which in (method, "gate"))
    alike = found.order.index == gate.order.index
    assert found.gate_agreement == pytest.approx(alike.double().mean().item())


@pytest.mark.parametrize("method", ["units", "gate", "gram", "sketch", "joint"])
def test_agreement_with_gram_matrices(layers, method, monkeypatch):
    """Of a scrambled copy all agree, even at a glimpse; where routers mislead, they do not."""
    layer, other = layers
    copy = act(derangement(layer), layer)
    monkeypatch.setattr(gram, "_GLIMPSE", 4)
    assert match_experts(layer, copy, method).gram_agreement == (0 if method == "units" else 1)
    monkeypatch.undo()
    found = match_experts(layer, replace(copy, experts=other.experts), method)
    exact = match_experts(layer, replace(copy, experts=other.experts), "gram").order
    assert found.gram_agreement == pytest.approx((found.order.index == exact.index).double().mean().item())
