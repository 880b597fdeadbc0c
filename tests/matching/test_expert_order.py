from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.matching.expert_order import gate_cost
from hf_moe_lmc.moe import act
from tests.layers import LAYER_KINDS, derangement
from tests.matching.matched import match_layers_experts


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


@pytest.mark.parametrize("method", ["gate", "gram", "joint", "auto"])
def test_planted_order_is_found(layers, method):
    layer = layers[0]
    planted = derangement(layer)
    assert match_layers_experts(layer, act(planted, layer), method).order == planted.experts.inverse()


@pytest.mark.parametrize("method", ["units", "none"])
def test_the_order_is_kept(layers, method):
    assert match_layers_experts(*layers, method).order.is_identity


@pytest.mark.parametrize("method", ["units", "gate", "gram", "joint"])
def test_agreement_with_router_rows(layers, method):
    """Of a scrambled copy all of them agree; with another's router, the orders differ as they say."""
    layer, other = layers
    copy = act(derangement(layer), layer)
    found = match_layers_experts(layer, copy, method)
    assert found.gate_agreement == (0 if method == "units" else 1)
    assert (found.table is None) == (method == "units")
    swapped = replace(copy, router=other.router)
    found, gate = (match_layers_experts(layer, swapped, which) for which in (method, "gate"))
    alike = found.order.index == gate.order.index
    assert found.gate_agreement == pytest.approx(alike.double().mean().item())
