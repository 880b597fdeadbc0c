import numpy as np
import pytest
import torch

from hf_moe_lmc.connectivity import Curve, Evaluation
from hf_moe_lmc.connectivity.bootstrap import bootstrap

T = (0.0, 0.5, 1.0)


def curve(losses: torch.Tensor, right: torch.Tensor | None = None) -> Curve:
    """From the losses of every example at every point, `[N, T]`, one prediction per example."""
    right = torch.zeros_like(losses) if right is None else right
    points = []
    for loss, correct in zip(losses.T, right.T, strict=True):
        examples = torch.stack([loss, correct, torch.ones_like(loss), loss], dim=-1)
        points.append(Evaluation(loss.mean().item(), correct.mean().item(), len(loss), examples=examples))
    return Curve(T, tuple(points))


def draws(number: int = 200, bump: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(number, 3, generator=generator, dtype=torch.float64)
    losses[:, 1] += bump
    return losses


def test_the_interval_is_that_of_a_mean():
    """The barrier of a path of three points is a mean over examples, whose standard error is known."""
    losses = draws()
    found = bootstrap({"naive": curve(losses)}, "naive", resamples=4000)["naive"].loss_barrier
    rise = losses[:, 1] - (losses[:, 0] + losses[:, 2]) / 2
    center, error = rise.mean().item(), rise.std().item() / len(rise) ** 0.5
    assert found.low == pytest.approx(center - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(center + 1.96 * error, abs=0.2 * error)


def test_resamples_are_paired():
    """Two paths that differ by a constant on every example differ by it in every resample."""
    losses = draws()
    higher = losses.clone()
    higher[:, 1] += 0.25
    found = bootstrap({"naive": curve(losses), "other": curve(higher)}, "naive", resamples=150)
    assert (found["naive"].above_naive.low, found["naive"].above_naive.high) == (0, 0)
    assert found["other"].above_naive.low == pytest.approx(0.25)
    assert found["other"].above_naive.high == pytest.approx(0.25)
    assert found["naive"].loss_barrier.low < found["naive"].loss_barrier.high - 0.01


def test_accuracy():
    losses, right = draws(), torch.ones(200, 3, dtype=torch.float64)
    right[:100, 1] = 0
    found = bootstrap({"naive": curve(losses, right)}, "naive")["naive"].accuracy_barrier
    assert found.low < 0.5 < found.high
    assert found.high - found.low == pytest.approx(4 * 0.5 / 200**0.5, rel=0.15)


def test_a_failed_point_has_no_interval():
    losses = draws()
    losses[:, 1] = torch.nan
    found = bootstrap({"naive": curve(losses)}, "naive", resamples=10)["naive"].loss_barrier
    assert np.isnan(found.low)
    assert np.isnan(found.high)
