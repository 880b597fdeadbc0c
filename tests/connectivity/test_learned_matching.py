import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from hf_moe_lmc import Alignment, align, scramble
from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.connectivity import Evaluation, LiveWeights, learned_matching, repaired_path
from hf_moe_lmc.connectivity.learned_matching import learn_from_shuffled, learn_matching, shuffled_layers
from hf_moe_lmc.connectivity.path import moved
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation, SignedPermutation
from tests.connectivity import finetuned


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
    assert min(found.held_out_loss) < found.held_out_loss[0] - 5e-5
    assert found.alignment.layers[name].symmetry != start.layers[name].symmetry
    layer = found.alignment.layers[name]
    assert layer.distance_after < layer.distance_before
    assert all(torch.equal(tensor, before[key]) for key, tensor in a.state_dict().items())
    assert all(parameter.grad is None for parameter in a.parameters())


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    """It ends where an undisturbed one does."""
    monkeypatch.setattr(learned_matching, "ROUND", 2)
    monkeypatch.setattr(learned_matching, "LEARNING_RATE", 0.3)
    _, whole = learned("mixtral", steps=6)
    looks = iter(range(3))
    evaluate = learned_matching.evaluate

    def killed(*arguments):
        if next(looks, None) is None:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(learned_matching, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        learned("mixtral", steps=6, state=tmp_path / "state.pt")
    monkeypatch.setattr(learned_matching, "evaluate", evaluate)
    _, again = learned("mixtral", steps=6, state=tmp_path / "state.pt")
    assert again.held_out_loss == whole.held_out_loss
    assert again.alignment.symmetries == whole.alignment.symmetries
    assert len(set(whole.held_out_loss)) == 4


def test_learning_from_shuffled_weights():
    """Every tensor of the layers keeps its entries, none its place; all else is as it was."""
    a, b = finetuned.pair("mixtral")
    specs, before = alignable_layers(b), b.state_dict()
    found = shuffled_layers(before, specs)
    of_layers = {name for spec in specs for name in spec.tensor_names}
    for name, tensor in before.items():
        assert torch.equal(found[name].flatten().sort().values, tensor.flatten().sort().values)
        assert torch.equal(found[name], tensor) == (name not in of_layers)
    batches = [list(finetuned.loader(start, 16)) for start in (12, 44)]
    control = learn_from_shuffled(a, before, *batches, steps=1, accelerator=Accelerator(cpu=True))
    assert control.held_out_loss[0] > 0.03 + midpoint_loss(a, b, batches[1])


def midpoint_loss(a, b, batches) -> float:
    """Of the aligned midpoint, norms kept."""
    options = {"steps": 0, "accelerator": Accelerator(cpu=True)}
    return learn_matching(a, LiveWeights(b), align(a, b), batches, batches, **options).held_out_loss[0]


@pytest.mark.parametrize(
    ("losses", "taken"),
    [
        ([3.0, 4.0, 5.0], 0),
        ([3.0, 3.0, 3.0], 0),
        ([3.0, 2.0, 2.5], 1),
        ([3.0, math.nan, 2.0], 2),
        ([3.0, math.nan, 4.0], 0),
    ],
)
def test_the_best_on_held_out_data_is_taken(losses, taken, monkeypatch):
    """Large steps, so that every round ends elsewhere."""
    monkeypatch.setattr(learned_matching, "LEARNING_RATE", 1.0)
    monkeypatch.setattr(learned_matching, "ROUND", 1)
    seen, given = [], iter(losses)

    def evaluate(model, held_out, accelerator):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return Evaluation(next(given), 0.0, 1)

    monkeypatch.setattr(learned_matching, "evaluate", evaluate)
    a, b = finetuned.pair("mixtral")
    start, found = learned("mixtral", steps=2)
    assert found.held_out_loss == pytest.approx(losses, nan_ok=True)
    specs, tensors = alignable_layers(a), LiveWeights(a)
    scrambled, _ = scramble(deepcopy(b), seed=3)
    symmetries = found.alignment.symmetries
    assert (symmetries == start.symmetries) == (taken == 0)
    path = repaired_path(tensors, moved(scrambled.state_dict(), specs, symmetries), specs, ("norms",))
    assert all(torch.equal(tensor, seen[taken][name]) for name, tensor in path(0.5).items())
