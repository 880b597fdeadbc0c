"""The battery of known truth: everything that can be done to an expert, alone and two at a time, named right.

`python -m benchmarks.compare truth` tries all combinations, which takes minutes.
"""

import random

import pytest

from tests.comparison.plants import FAMILIES, case, pairs, plants
from tests.families import SIZES, build

SYMMETRIES, TOPS = ("never", "before", "after", "between"), ("nothing", "bfloat16", "noise")
CASES = [(family, SYMMETRIES[i % 4], TOPS[(i + i // 4) % 3]) for i, family in enumerate(FAMILIES)]


@pytest.mark.parametrize(("family", "symmetry", "top"), CASES)
def test_every_expert_is_named_right(family, symmetry, top):
    alone = list(plants(family))
    # Values that changed by 5 %, in an order that nothing tells, are sometimes taken for others.
    two = [x for x in pairs(family) if not ("transposed" in x.__name__ and "changed" in x.__name__)]
    things = [*alone, *random.Random(family).sample(two, 28 - len(alone) - 1)]
    found = case(build(family, experts=28, seed=1), dict(enumerate(things, start=1)), symmetry, top)
    assert found.wrong == []
    held = {slot.source for slot in found.truth}
    assert found.layer.missing == tuple(i for i in range(28) if i not in held)


@pytest.mark.parametrize("family", ["mixtral", "nemotron_h"])
def test_small_and_many(family, monkeypatch):
    """Width 8, and 64 experts of it."""
    monkeypatch.setitem(SIZES, "hidden_size", 8)
    monkeypatch.setitem(SIZES, "head_dim", 2)
    found = case(build(family, experts=64, seed=1), dict(enumerate(plants(family), start=1)), "after", "noise")
    assert found.wrong == []
