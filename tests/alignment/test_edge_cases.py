"""Models at the edge of what a Mixture of Experts is."""

import pytest
import torch
from transformers import PreTrainedModel

from hf_moe_lmc import align, merge, scramble
from tests import models
from tests.models import logits

ORDERS = ["gate", "gram", "joint"]


def mixtral(experts: int, active: int, seed: int = 0) -> PreTrainedModel:
    """In float64."""
    return models.draw_weights(models.mixtral(num_local_experts=experts, num_experts_per_tok=active), seed).double()


def experts_of(model: PreTrainedModel) -> list[torch.nn.Module]:
    return [layer.mlp.experts for layer in model.model.layers]


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())


@pytest.mark.parametrize("expert_order", ORDERS)
@pytest.mark.parametrize(("experts", "active"), [(1, 1), (4, 1), (4, 4)])
def test_one_expert_one_active_all_active(experts, active, expert_order):
    model, other = mixtral(experts, active), mixtral(experts, active)
    other, _ = scramble(other)
    assert not same(model, other)
    assert float((logits(other) - logits(model)).abs().max() / logits(model).abs().max()) < 2e-5
    assert same(model, align(model, other, config=expert_order).apply(other))


@pytest.mark.parametrize("expert_order", ["gate", "joint"])
def test_all_zero_experts(expert_order):
    """Of one side, or of both: the routers decide, and nothing is divided by nothing."""
    zero, model = mixtral(4, 2), mixtral(4, 2, seed=1)
    with torch.no_grad():
        for experts in experts_of(zero):
            experts.gate_up_proj.zero_()
            experts.down_proj.zero_()
    for reference, other in ((zero, model), (model, zero), (zero, zero)):
        alignment = align(reference, other, config=expert_order)
        assert all(layer.distance_after <= layer.distance_before for layer in alignment.layers.values())
        merged = merge(reference, other, alignment=alignment, force=True)
        assert logits(merged).isfinite().all()


@pytest.mark.parametrize("expert_order", ORDERS)
def test_two_identical_experts(expert_order):
    """Router rows included: either order is right, and the weights come back all the same."""
    model, other = mixtral(4, 2), mixtral(4, 2)
    with torch.no_grad():
        for one in (model, other):
            for layer in one.model.layers:
                for tensor in (layer.mlp.gate.weight, layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                    tensor[2] = tensor[0]
    other, _ = scramble(other)
    assert not same(model, other)
    assert same(model, align(model, other, config=expert_order).apply(other))
