"""Confidence intervals over pairs that share endpoints."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


def endpoint_weights(
    pairs: Sequence[tuple[object, object]], resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Bootstrap over endpoints: how often every pair occurs when endpoints are drawn with replacement, `[R, pairs]`.

    Of endpoints that are drawn i and j times, their pair counts i j times, for all its pairs change with an endpoint
    (Snijders and Borgatti, 1999). Pairs of which no two share an endpoint are drawn themselves. Draws without any pair
    are left out.
    """
    ends = [end for pair in pairs for end in pair]
    if len(set(ends)) == len(ends):
        first = second = np.arange(len(pairs))
    else:
        first, second = np.unique([ends.index(end) for end in ends], return_inverse=True)[1].reshape(-1, 2).T
    number = int(max(first.max(), second.max())) + 1
    counts = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=resamples)
    weights = counts[:, first] * (1 if first is second else counts[:, second])
    return weights[weights.sum(axis=1) > 0].astype(np.float64)


def ratio_interval(
    pairs: Sequence[tuple[object, object]], values: Sequence[float], wholes: Sequence[float]
) -> tuple[float, float]:
    """The central 95 % of `sum(values) / sum(wholes)`, each with one entry per pair, under `endpoint_weights`."""
    weights = endpoint_weights(pairs)
    low, high = np.percentile((weights @ np.asarray(values)) / (weights @ np.asarray(wholes)), [2.5, 97.5])
    return float(low), float(high)
