"""Barriers: how far a path rises above the straight line between its endpoints, and how sure that is."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

RESAMPLES_AT_A_TIME = 100


@dataclass(frozen=True)
class Barrier:
    """Losses and accuracies along a path, and what follows from them.

    Args:
        t: points of the path, ascending, from 0 (reference) to 1 (other).
        loss: mean loss at each point, nats.
        accuracy: accuracy at each point, in [0, 1].
    """

    t: tuple[float, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.t) == len(self.loss) == len(self.accuracy):
            raise ValueError(f"{len(self.t)} points, {len(self.loss)} losses and {len(self.accuracy)} accuracies")
        if len(self.t) < 2 or self.t[0] != 0 or self.t[-1] != 1 or any(np.diff(self.t) <= 0):
            raise ValueError(f"the points of a path must ascend from 0 to 1; found {self.t}")

    @property
    def failed(self) -> tuple[float, ...]:
        """The points whose loss is NaN or infinite; with one of them, no barrier is a number."""
        return tuple(t for t, loss in zip(self.t, self.loss, strict=True) if not math.isfinite(loss))

    @property
    def loss_barrier(self) -> float:
        """`max_t [L(t) - ((1 - t) L(0) + t L(1))]`, nats; at least 0 (arXiv:2509.11348, section 2)."""
        return float(_rise(self.t, self.loss).max())

    @property
    def accuracy_barrier(self) -> float:
        """`max_t [((1 - t) a(0) + t a(1)) - a(t)]`; at least 0."""
        return float((0 - _rise(self.t, self.accuracy)).max())

    @property
    def loss_auc(self) -> float:
        """Area between the loss and the straight line between its ends, by the trapezoidal rule; negative below it."""
        return float(np.trapezoid(_rise(self.t, self.loss), self.t))

    @property
    def accuracy_auc(self) -> float:
        """Area between the straight line between the ends of the accuracy and the accuracy, by the trapezoidal rule."""
        return float(np.trapezoid(-_rise(self.t, self.accuracy), self.t))


@dataclass(frozen=True)
class Interval:
    """The central 95 % of the resampled values; NaN where a point of the path failed."""

    low: float
    high: float


@dataclass(frozen=True)
class BarrierIntervals:
    """Intervals of one path.

    Args:
        loss_barrier, accuracy_barrier: of the barriers.
        above_naive: of the loss barrier minus that of the naive path, resample by resample; below 0 throughout means
            that the path is better on more than these examples.
    """

    loss_barrier: Interval
    accuracy_barrier: Interval
    above_naive: Interval


def barrier_intervals(
    examples: Mapping[str, Float[Tensor, "N T 4"]],
    t: Sequence[float],
    naive: str = "naive",
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, BarrierIntervals]:
    """Percentile intervals of a paired bootstrap: whole examples are drawn with replacement, the same for all paths.

    Args:
        examples: name of a path -> per example (image, sequence, block) and point: summed loss, right predictions,
            predictions; see `Evaluation.examples`.
        t: the points, the same for all paths.
        naive: name of the path that the others are compared with.
        resamples: how often.
        seed: of the draws.
    """
    from scipy.stats import DegenerateDataWarning, bootstrap  # a second that only this needs

    stacked = np.stack([path[..., :3].double().numpy() for path in examples.values()], axis=1)  # [N, P, T, 3]
    reference, (number, paths) = list(examples).index(naive), stacked.shape[:2]

    def barriers(drawn: Int[np.ndarray, "*R N"], axis: int) -> Float[np.ndarray, "B *R"]:
        """Loss barriers, accuracy barriers and loss barriers above naive, B = 3 P, over the examples drawn."""
        rows = drawn.reshape(-1, number)
        counts = np.stack([np.bincount(row, minlength=number) for row in rows]).astype(np.float64)
        loss, right, predictions = np.moveaxis(np.tensordot(counts, stacked, axes=1), -1, 0)  # each [R, P, T]
        rise = _rise(t, loss / predictions).max(axis=-1)
        fall = (0 - _rise(t, right / predictions)).max(axis=-1)
        values = np.concatenate([rise, fall, rise - rise[:, [reference]]], axis=1)
        return values.T.reshape(3 * paths, *drawn.shape[:-1])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # of the NaN of a failed point
        limits = bootstrap(
            (np.arange(number),),
            barriers,
            n_resamples=resamples,
            batch=RESAMPLES_AT_A_TIME,
            vectorized=True,
            method="percentile",
            rng=seed,
        ).confidence_interval
    intervals = [Interval(float(low), float(high)) for low, high in zip(limits.low, limits.high, strict=True)]
    return {name: BarrierIntervals(*intervals[i::paths]) for i, name in enumerate(examples)}


def _rise(t: Sequence[float], values: Any) -> NDArray[np.float64]:
    """`values(t) - ((1 - t) values(0) + t values(1))` along the last axis; equal values give 0 exactly."""
    y = np.asarray(values)
    return y - (y[..., :1] + np.asarray(t) * (y[..., -1:] - y[..., :1]))
