import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_moe_lmc.connectivity import Barrier, plot_barriers
from hf_moe_lmc.connectivity.barrier import barrier_intervals

T = (0.0, 0.25, 0.5, 1.0)


def test_by_hand():
    barrier = Barrier(T, loss=(1.0, 2.0, 4.0, 3.0), accuracy=(0.9, 0.8, 0.4, 0.7))
    assert barrier.loss_barrier == pytest.approx(4.0 - 2.0)
    assert barrier.accuracy_barrier == pytest.approx(0.8 - 0.4)
    # rises above the line: 0, 0.5, 2, 0 over steps 0.25, 0.25, 0.5
    assert barrier.loss_auc == pytest.approx(0.25 * 0.25 + 0.25 * 1.25 + 0.5 * 1.0)
    assert barrier.accuracy_auc == pytest.approx(0.25 * 0.025 + 0.25 * 0.225 + 0.5 * 0.2)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9))
def test_laws(values):
    t = tuple(i / (len(values) - 1) for i in range(len(values)))
    barrier = Barrier(t, tuple(values), tuple(values))
    assert barrier.loss_barrier >= 0
    assert barrier.accuracy_barrier >= 0
    assert barrier.loss_auc == pytest.approx(-barrier.accuracy_auc)
    assert barrier.loss_auc <= barrier.loss_barrier + 1e-9
    tilted = Barrier(t, tuple(v + 3 * x - 1 for v, x in zip(values, t, strict=True)), tuple(values))
    assert tilted.loss_barrier == pytest.approx(barrier.loss_barrier, abs=1e-9)


def test_a_straight_line_has_no_barrier():
    barrier = Barrier(T, tuple(2 - t for t in T), tuple(t / 2 for t in T))
    assert barrier.loss_barrier == barrier.accuracy_barrier == barrier.loss_auc == 0.0


def test_a_valley_has_no_barrier_but_a_negative_area():
    barrier = Barrier(T, (1.0, 0.5, 0.5, 1.0), (0.5,) * 4)
    assert barrier.loss_barrier == 0.0
    assert barrier.loss_auc < 0


def test_a_failed_point_is_not_hidden():
    assert math.isnan(Barrier(T, (1.0, math.nan, 1.0, 1.0), (0.5,) * 4).loss_barrier)


@pytest.mark.parametrize(
    ("t", "loss", "message"),
    [
        ((0.0, 1.0), (1.0,), "2 points, 1 losses"),
        ((0.0,), (1.0,), "ascend from 0 to 1"),
        ((0.0, 0.5), (1.0, 1.0), "ascend from 0 to 1"),
        ((0.0, 0.7, 0.6, 1.0), (1.0,) * 4, "ascend from 0 to 1"),
    ],
)
def test_what_is_no_path(t, loss, message):
    with pytest.raises(ValueError, match=message):
        Barrier(t, loss, (0.5,) * len(t))


def test_the_plot_is_a_picture(tmp_path):
    barrier = Barrier(T, (1.0, 2.0, 4.0, 3.0), (0.9, 0.8, 0.4, 0.7))
    plot_barriers({"naive": [barrier], "aligned": [barrier, barrier]}, tmp_path / "barrier.png", "title")
    assert (tmp_path / "barrier.png").read_bytes().startswith(b"\x89PNG")


HALF = (0.0, 0.5, 1.0)


def path(losses: torch.Tensor, right: torch.Tensor | None = None) -> torch.Tensor:
    """`[N, T, 4]` of losses of every example at every point, `[N, T]`, one prediction per example."""
    right = torch.zeros_like(losses) if right is None else right
    return torch.stack([losses, right, torch.ones_like(losses), losses], dim=-1)


def draws(number: int = 200, bump: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(number, 3, generator=generator, dtype=torch.float64)
    losses[:, 1] += bump
    return losses


def test_the_interval_is_that_of_a_mean():
    """The barrier of a path of three points is a mean over examples, whose standard error is known."""
    losses = draws()
    found = barrier_intervals({"naive": path(losses)}, HALF, resamples=4000)["naive"].loss_barrier
    rise = losses[:, 1] - (losses[:, 0] + losses[:, 2]) / 2
    center, error = rise.mean().item(), rise.std().item() / len(rise) ** 0.5
    assert found.low == pytest.approx(center - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(center + 1.96 * error, abs=0.2 * error)


def test_resamples_are_paired():
    """Two paths that differ by a constant on every example differ by it in every resample."""
    losses = draws()
    higher = losses.clone()
    higher[:, 1] += 0.25
    found = barrier_intervals({"naive": path(losses), "other": path(higher)}, HALF, resamples=150)
    assert (found["naive"].above_naive.low, found["naive"].above_naive.high) == (0, 0)
    assert found["other"].above_naive.low == pytest.approx(0.25)
    assert found["other"].above_naive.high == pytest.approx(0.25)
    assert found["naive"].loss_barrier.low < found["naive"].loss_barrier.high - 0.01


def test_accuracy():
    losses, right = draws(), torch.ones(200, 3, dtype=torch.float64)
    right[:100, 1] = 0
    found = barrier_intervals({"naive": path(losses, right)}, HALF)["naive"].accuracy_barrier
    assert found.low < 0.5 < found.high
    assert found.high - found.low == pytest.approx(4 * 0.5 / 200**0.5, rel=0.15)


def test_a_failed_point_has_no_interval():
    losses = draws()
    losses[:, 1] = torch.nan
    found = barrier_intervals({"naive": path(losses)}, HALF, resamples=10)["naive"].loss_barrier
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_intervals_equal_the_loop():
    """Against one resample after the other, with unequal numbers of predictions and an accuracy of its own."""
    generator = torch.Generator().manual_seed(1)
    paths = {name: torch.rand(30, 4, 4, generator=generator, dtype=torch.float64) + 0.1 for name in ("a", "naive")}
    found = barrier_intervals(paths, T, resamples=50, seed=3)
    drawn = np.random.default_rng(3).integers(30, size=(50, 30))
    barriers = {name: [] for name in paths}
    for name, examples in paths.items():
        for rows in drawn:
            loss, right, count = examples[rows].sum(dim=0).T[:3]
            barriers[name].append(Barrier(T, tuple((loss / count).tolist()), tuple((right / count).tolist())))
    for name in paths:
        loss, naive = (np.array([barrier.loss_barrier for barrier in barriers[key]]) for key in (name, "naive"))
        accuracy = [barrier.accuracy_barrier for barrier in barriers[name]]
        for interval, values in (
            (found[name].loss_barrier, loss),
            (found[name].accuracy_barrier, accuracy),
            (found[name].above_naive, loss - naive),
        ):
            assert (interval.low, interval.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
