from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from hf_moe_lmc import Alignment, align, scramble
from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.connectivity import LiveWeights, learned_matching
from hf_moe_lmc.connectivity.learned_matching import _LatentBank, learn_matching
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation, SignedPermutation
from tests.connectivity import finetuned
from tests.layers import LAYER_KINDS


def misaligned(alignment: Alignment, name: str) -> Alignment:
    """`alignment` with half of the units of every expert of one layer at wrong places."""
    layer = alignment.layers[name]
    experts, units, shared = layer.symmetry.shape
    index = torch.arange(units).roll(1).where(torch.arange(units) < units // 2, torch.arange(units))
    index[0] = units // 2 - 1
    moved = SignedPermutation.unsigned(Permutation(index.repeat(experts, 1)))
    wrong = replace(MoeSymmetry.identity(experts, units, shared), units=moved)
    return replace(alignment, layers=alignment.layers | {name: replace(layer, symmetry=wrong @ layer.symmetry)})


def learned(family: str, alignment=None, steps: int = 20, **options):
    a, b = finetuned.pair(family)
    scrambled, _ = scramble(deepcopy(b), seed=3)
    batches = [list(finetuned.loader(start, 32, family=family)) for start in (12, 44)]
    alignment = alignment(align(a, scrambled)) if alignment else align(a, scrambled)
    options = {"accelerator": Accelerator(cpu=True)} | options
    return alignment, learn_matching(a, LiveWeights(scrambled), alignment, *batches, steps, **options)


@pytest.mark.parametrize("family", ["mixtral", "moe_vit"])
def test_a_wrong_start_is_improved(family):
    a, _ = finetuned.pair(family)
    before = {key: tensor.clone() for key, tensor in a.state_dict().items()}
    name = alignable_layers(a)[-1].name
    start, found = learned(family, lambda alignment: misaligned(alignment, name))
    assert len(found.held_out_loss) == 3
    assert min(found.held_out_loss) < found.held_out_loss[0] - 1e-3
    assert found.alignment.layers[name].symmetry != start.layers[name].symmetry
    layer = found.alignment.layers[name]
    assert layer.distance_after < layer.distance_before
    assert all(torch.equal(tensor, before[key]) for key, tensor in a.state_dict().items())
    assert all(parameter.grad is None for parameter in a.parameters())


def test_what_is_not_better_is_not_taken(monkeypatch):
    """Steps so large that all that was matched is lost."""
    monkeypatch.setattr(learned_matching, "LEARNING_RATE", 100.0)
    start, found = learned("moe_vit")
    assert min(found.held_out_loss[1:]) > found.held_out_loss[0]
    assert found.alignment.symmetries.keys() == start.symmetries.keys()
    for name, symmetry in start.symmetries.items():
        kept = found.alignment.symmetries[name]
        assert kept.experts == symmetry.experts
        assert kept.units == symmetry.units


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_the_start_is_weight_matching_and_moves_are_its_symmetries(kind):
    a, b = (LAYER_KINDS[kind](seed=seed) for seed in (0, 1))
    bank = _LatentBank.of(a.experts, b.experts, a.group.unit_signs)
    moved, symmetry = bank.move(b.experts), bank.symmetry()
    for name, tensor in b.experts.permute_units(symmetry).tensors().items():
        torch.testing.assert_close(moved.tensors()[name], tensor)
    again = _LatentBank.of(a.experts, b.experts.permute_units(symmetry), a.group.unit_signs).symmetry()
    assert again.is_identity
    moved.down_proj.square().sum().backward()
    assert bank.latent.grad is not None
    assert bank.latent.grad.abs().sum() > 0
