"""Confidence intervals over pairs that share endpoints."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


@lru_cache
def endpoint_weights(
    pairs: tuple[tuple[object, object], ...], resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Bootstrap over endpoints: how often every pair occurs when endpoints are drawn with replacement, `[R, pairs]`.

    Of endpoints that are drawn i and j times, their pair counts i j times, for all its pairs change with an endpoint
    (Snijders and Borgatti, 1999). Pairs of which no two share an endpoint are drawn themselves. Draws without any pair
    are left out.

    Few endpoints still make intervals that are too narrow. Where all that pairs differ by are their endpoints, those of
    95 % hold the mean in 49, 74, 79 and 84 % of cases with 3, 4, 5 and 8 endpoints, and in 88 % with two groups of 4; a
    bootstrap over pairs, as if they were independent, in 49, 50, 51, 48 and 65 %.
    """
    ends = [end for pair in pairs for end in pair]
    numbers = {end: number for number, end in enumerate(dict.fromkeys(ends))}
    if len(numbers) < len(ends):
        drawn, units = len(numbers), [[numbers[a], numbers[b]] for a, b in pairs]
    else:
        drawn, units = len(pairs), [[pair] for pair in range(len(pairs))]
    counts = np.random.default_rng(seed).multinomial(drawn, np.full(drawn, 1 / drawn), size=resamples)
    weights = np.stack([counts[:, unit].prod(axis=1) for unit in units], axis=1)
    return weights[weights.sum(axis=1) > 0].astype(np.float64)


def ratio_interval(
    pairs: Sequence[tuple[object, object]], values: Sequence[float], wholes: Sequence[float]
) -> tuple[float, float]:
    """The central 95 % of `sum(values) / sum(wholes)`, each with one entry per pair, under `endpoint_weights`."""
    weights = endpoint_weights(tuple(pairs))
    low, high = np.percentile((weights @ np.asarray(values)) / (weights @ np.asarray(wholes)), [2.5, 97.5])
    return float(low), float(high)
