"""Confidence intervals of barriers, by resampling the examples."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .curve import Curve

CHUNK = 100


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


def bootstrap(
    curves: Mapping[str, Curve], naive: str, resamples: int = 1000, seed: int = 0
) -> dict[str, BarrierIntervals]:
    """Paired bootstrap: whole examples (images, sequences, blocks) are drawn with replacement, the same for all paths.

    Args:
        curves: paths evaluated on the same examples at the same points.
        naive: name of the path that the others are compared with.
        resamples: how often.
        seed: of the draws.
    """
    examples = {name: curve.examples.numpy() for name, curve in curves.items()}
    generator, number = np.random.default_rng(seed), len(examples[naive])
    loss: dict[str, list[NDArray[np.float64]]] = {name: [] for name in curves}
    accuracy: dict[str, list[NDArray[np.float64]]] = {name: [] for name in curves}
    for start in range(0, resamples, CHUNK):
        draws = generator.multinomial(number, np.full(number, 1 / number), size=min(CHUNK, resamples - start))
        for name, found in examples.items():
            sums = np.einsum("rn,ntc->rtc", draws.astype(np.float64), found, optimize=True)
            t = np.asarray(curves[name].t)
            loss[name].append(_rise(sums[..., 0] / sums[..., 2], t).max(axis=1))
            accuracy[name].append((-_rise(sums[..., 1] / sums[..., 2], t)).max(axis=1))
    barriers = {name: np.concatenate(values) for name, values in loss.items()}
    return {
        name: BarrierIntervals(
            _interval(barriers[name]),
            _interval(np.concatenate(accuracy[name])),
            _interval(barriers[name] - barriers[naive]),
        )
        for name in curves
    }


def _rise(values: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.float64]:
    return values - (values[:, :1] + t * (values[:, -1:] - values[:, :1]))


def _interval(values: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(low), float(high))
