from dataclasses import replace

import pytest
import torch

from hf_moe_lmc import scramble
from hf_moe_lmc.adapters import moe_layers
from hf_moe_lmc.connectivity.latent_layer import LatentLayer, LatentUnits
from hf_moe_lmc.moe import act
from tests.connectivity import finetuned
from tests.layers import LAYER_KINDS

FAMILIES = ("mixtral", "deepseek_v3", "moe_vit")  # all orders of experts, orders of groups, biases and a shared expert


def latent_layer(family: str) -> LatentLayer:
    """The last layer of two random models, the other one's experts and units in a random order."""
    a, b = (finetuned.build(family).double() for _ in range(2))
    spec = moe_layers(a)[-1]
    return LatentLayer.of(spec, a.state_dict(), scramble(b, seed=1)[0].state_dict())


def with_other_order(layer: LatentLayer) -> LatentLayer:
    """The layer with random scores of its expert order, so that experts leave the slots where they began."""
    assert layer.order is not None
    drawn = torch.randn(layer.order.scores.shape, generator=torch.Generator().manual_seed(0))
    return replace(layer, order=replace(layer.order, scores=drawn.requires_grad_()))


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_the_start_is_weight_matching_and_moves_are_its_symmetries(kind):
    a, b = (LAYER_KINDS[kind](seed=seed) for seed in (0, 1))
    units = LatentUnits.of(a.experts, b.experts, a.group.unit_signs)
    moved, symmetry = units.move(b.experts), units.symmetry()
    for name, tensor in b.experts.permute_units(symmetry).tensors().items():
        torch.testing.assert_close(moved.tensors()[name], tensor)
    again = LatentUnits.of(a.experts, b.experts.permute_units(symmetry), a.group.unit_signs).symmetry()
    assert again.is_identity
    moved.down_proj.square().sum().backward()
    assert units.scores.grad is not None
    assert units.scores.grad.abs().sum() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scrambled_twin_is_put_back(family):
    a = finetuned.build(family).double()
    spec, before = moe_layers(a)[-1], {name: tensor.clone() for name, tensor in a.state_dict().items()}
    layer = LatentLayer.of(spec, before, scramble(a, seed=1)[0].state_dict())
    assert not layer.home.is_identity
    found, wanted = act(layer.symmetry(), layer.other).tensors(), layer.reference.tensors()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_moved_is_the_symmetry(family):
    layer = with_other_order(latent_layer(family))
    symmetry, moved = layer.symmetry(), layer.moved().tensors()
    assert symmetry.experts != layer.home
    for name, tensor in act(symmetry, layer.other).tensors().items():
        torch.testing.assert_close(moved[name], tensor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_gets_the_gradient_of_the_permutation_matrix(family):
    """`slot_i = sum_j P_ij expert_ij`, differentiated by autograd."""
    layer = with_other_order(latent_layer(family))
    assert layer.order is not None
    experts = layer.symmetry().experts
    entries = torch.eye(experts.size, dtype=torch.float64)[experts.index].requires_grad_()
    table = {pair: layer._in_slot(*pair).tensors() for pair in layer.order.units}
    slots = {
        name: torch.stack(
            [sum(entries[i, j] * table[i, j][name][0] for j in range(experts.size)) for i in range(experts.size)]
        )
        for name in layer.other.experts.tensors()
    }
    rows = {
        name: (entries @ tensor.reshape(len(tensor), -1)).reshape(tensor.shape)
        for name, tensor in layer.other.router.tensors().items()
    }

    def loss(experts, router):
        """Of all tensors, and every entry counts differently."""
        named = sorted({**experts, **{f"router.{name}": tensor for name, tensor in router.items()}}.items())
        generator = torch.Generator().manual_seed(1)
        return sum((torch.randn(t.shape, generator=generator, dtype=t.dtype) * t.sin()).sum() for _, t in named)

    wanted = torch.autograd.grad(loss(slots, rows), entries)[0]
    moved = layer.moved()
    loss(moved.experts.tensors(), moved.router.tensors()).backward()
    layer.credit_order(moved)
    assert layer.order.scores.grad.abs().min() > 0
    torch.testing.assert_close(layer.order.scores.grad, wanted.float(), rtol=1e-5, atol=1e-5)
