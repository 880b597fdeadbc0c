from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from hf_moe_lmc import align
from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.alignment import SavedWeights, aligned
from hf_moe_lmc.connectivity import evaluate, linear_path, measure
from tests.connectivity.test_evaluation import batches
from tests.layers import derangement
from tests.models import build

POINTS = (0.0, 0.3, 0.5, 1.0)


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


@pytest.mark.parametrize("name", ["moe_vit shared", "mixtral"])
def test_barriers_of_a_model_with_itself(accelerator, name):
    """0 to itself; not 0 to a random symmetric rewrite of itself; 0 again once that is aligned."""
    model, scratch = build(name, dtype=torch.float32), build(name, seed=5, dtype=torch.float32)
    loader, _ = batches(model, accelerator)
    tensors, specs = model.state_dict(), alignable_layers(model)

    def barrier(other):
        return measure(SavedWeights(scratch), linear_path(tensors, other), POINTS, loader, accelerator).barrier

    itself = barrier(tensors)
    assert itself.loss_barrier == itself.accuracy_barrier == itself.loss_auc == 0.0
    planted = {spec.name: derangement(spec.read(tensors)) for spec in specs}
    moved = aligned(tensors, specs, planted)
    assert abs(barrier(moved).loss_auc) > 1e-3
    scratch.load_state_dict(dict(moved))
    back = aligned(moved, specs, align(model, scratch, config="joint").symmetries)
    assert barrier(back) == itself


def test_the_endpoints_of_a_path_are_the_models(accelerator):
    a, b = (build("moe_vit dense", seed=seed, dtype=torch.float32) for seed in (0, 1))
    loader, _ = batches(a, accelerator)
    endpoints = [evaluate(model, loader, accelerator) for model in (a, b)]
    scratch = build("moe_vit dense", seed=2, dtype=torch.float32)
    path = measure(
        SavedWeights(scratch), linear_path(a.state_dict(), b.state_dict()), POINTS, loader, accelerator
    ).barrier
    assert (path.loss[0], path.loss[-1]) == tuple(point.loss for point in endpoints)
    assert path.t == POINTS


def test_endpoints_that_are_known_are_not_evaluated_again(accelerator):
    a, b = (build("moe_vit sparse", seed=seed, dtype=torch.float32) for seed in (0, 1))
    loader, _ = batches(a, accelerator)
    weights = [dict(model.state_dict()) for model in (a, b)]
    saved, asked = SavedWeights(build("moe_vit sparse", seed=2, dtype=torch.float32)), []

    def path(t):
        asked.append(t)
        return linear_path(*weights)(t)

    first = measure(saved, path, POINTS, loader, accelerator)
    again = measure(saved, path, POINTS, loader, accelerator, same_endpoints=first)
    assert asked == [*POINTS, *POINTS[1:-1]]
    assert again == first


def test_the_midpoint_and_the_ensemble(accelerator):
    """Of a path without t = 1/2 there is none; two equal endpoints are their own ensemble."""
    model = build("moe_vit sparse", dtype=torch.float32)
    loader, _ = batches(model, accelerator)
    saved, own = SavedWeights(model), dict(model.state_dict())
    curve = measure(saved, linear_path(own, own), POINTS, loader, accelerator)
    assert curve.midpoint_loss == curve.evaluations[2].loss
    assert replace(curve, t=(0.0, 0.3, 0.6, 1.0)).midpoint_loss is None
    assert curve.ensemble_loss == pytest.approx(curve.evaluations[0].loss, rel=1e-6)
    assert [len(point.predictions) for point in curve.evaluations] == [13, 0, 0, 13]
