from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.matching import expert_order, gram, match_experts
from hf_moe_lmc.matching.expert_order import gate_cost
from hf_moe_lmc.matching.joint import JointTable
from hf_moe_lmc.moe import act
from tests.layers import LAYER_KINDS, derangement
from tests.matching.matched import match_banks


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
    monkeypatch.setattr(expert_order, "_sketched_order", lambda *_: gate.order)
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
            matched = expert_b.permute_units(match_banks(expert_a, expert_b, a.group.unit_signs))
            expected = sum((x * matched.tensors()[name]).sum() for name, x in expert_a.tensors().items())
            torch.testing.assert_close(table[i, j], expected + rows[i, j])


@pytest.mark.parametrize("method", ["gate", "gram", "joint", "auto"])
def test_planted_order_is_found(layers, method):
    layer = layers[0]
    planted = derangement(layer)
    assert match_experts(layer, act(planted, layer), method).order == planted.experts.inverse()


def test_units_keeps_the_order(layers):
    assert match_experts(*layers, "units").order.is_identity


@pytest.mark.parametrize("method", ["units", "gate", "gram", "joint"])
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


@pytest.mark.parametrize("method", ["units", "gate", "gram", "joint"])
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
