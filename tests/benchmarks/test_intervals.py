from itertools import combinations

import numpy as np
import pytest

from benchmarks.intervals import endpoint_weights, ratio_interval


def test_weights_by_hand():
    """Endpoints drawn i and j times make i j pairs; an endpoint that is not drawn takes all its pairs along."""
    pairs = (("a", "b"), ("a", "c"), ("b", "c"))
    weights = endpoint_weights(pairs)
    assert {tuple(sorted(row)) for row in weights.tolist()} == {(0, 0, 2), (1, 1, 1)}
    assert weights.mean(axis=0) == pytest.approx([weights.mean()] * 3, rel=0.1)


def test_pairs_that_share_nothing_are_drawn_themselves():
    weights = endpoint_weights((("a", "b"), ("c", "d"), ("e", "f"), ("g", "h")))
    assert set(weights.sum(axis=1)) == {4.0}
    assert weights.max() > 1


def covered(interval, trials: int = 200) -> float:
    """Share of the intervals that hold the mean, 1, of pairs whose values are 1 plus effects of both endpoints."""
    generator, pairs, hits = np.random.default_rng(0), list(combinations(range(8), 2)), 0
    for _ in range(trials):
        effects = generator.normal(0, 0.1, 8)
        values = [1 + effects[a] + effects[b] for a, b in pairs]
        low, high = interval(pairs, values, [1.0] * len(pairs))
        hits += low <= 1 <= high
    return hits / trials


def test_intervals_cover_the_mean_of_pairs_that_share_endpoints():
    """Where those of a bootstrap over the pairs, as if they were independent, do not."""

    def over_pairs(pairs, values, wholes):
        return ratio_interval([(2 * i, 2 * i + 1) for i in range(len(pairs))], values, wholes)

    assert covered(ratio_interval) > 0.78
    assert covered(over_pairs) < 0.6


def test_a_constant_ratio_has_no_width():
    assert ratio_interval([(0, 1), (0, 2), (1, 2)], [1.0, 2.0, 4.0], [2.0, 4.0, 8.0]) == pytest.approx((0.5, 0.5))
