"""Barriers: how far a path rises above the straight line between its ends."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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

    def _rise(self, values: tuple[float, ...]) -> NDArray[np.float64]:
        """`values(t) - ((1 - t) values(0) + t values(1))`, written so that equal values give 0 exactly."""
        t, y = np.asarray(self.t), np.asarray(values)
        return y - (y[0] + t * (y[-1] - y[0]))

    @property
    def failed(self) -> tuple[float, ...]:
        """The points whose loss is NaN or infinite; with one of them, no barrier is a number."""
        return tuple(t for t, loss in zip(self.t, self.loss, strict=True) if not math.isfinite(loss))

    @property
    def loss_barrier(self) -> float:
        """`max_t [L(t) - ((1 - t) L(0) + t L(1))]`, nats; at least 0 (arXiv:2509.11348, section 2)."""
        return float(self._rise(self.loss).max())

    @property
    def accuracy_barrier(self) -> float:
        """`max_t [((1 - t) a(0) + t a(1)) - a(t)]`; at least 0."""
        return float((0 - self._rise(self.accuracy)).max())

    @property
    def loss_auc(self) -> float:
        """Area between the loss and the straight line between its ends, by the trapezoidal rule; negative below it."""
        return float(np.trapezoid(self._rise(self.loss), self.t))

    @property
    def accuracy_auc(self) -> float:
        """Area between the straight line between the end accuracies and the accuracy, by the trapezoidal rule."""
        return float(np.trapezoid(-self._rise(self.accuracy), self.t))
