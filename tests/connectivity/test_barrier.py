import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_moe_lmc.connectivity import Barrier, plot_barriers

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
