"""The battery of known truth: everything that can be done to an expert, in every slot another thing, named right."""

import copy
from itertools import product

import pytest

from hf_moe_lmc.comparison import compare
from tests.comparison.plants import (
    FAMILIES,
    Slot,
    Truth,
    named,
    on_top,
    planted,
    plants,
    rewritten,
    symmetric_start,
)
from tests.families import build

# Every combination in one family at least, two in each: all of them take minutes.
COMBINATIONS = list(product(("never", "before", "after"), ("nothing", "bfloat16", "noise")))
CASES = [(family, *COMBINATIONS[(2 * i + j) % 9]) for i, family in enumerate(FAMILIES) for j in range(2)]


@pytest.mark.parametrize(("family", "when", "top"), CASES)
def test_every_expert_is_named_right(family, when, top):
    things = dict(enumerate(plants(family), start=1))
    a = build(family, experts=4 * (len(things) // 4 + 1), seed=1)
    start, orders = symmetric_start(a, seed=2) if when == "before" else (copy.deepcopy(a), None)
    b, truths = planted(start, things, seed=3)
    if orders:
        truths = {name: _renumbered(truth, orders[name]) for name, truth in truths.items()}
    if when == "after":
        b, truths = rewritten(b, truths, seed=4)
    truths = on_top(b, top, truths, seed=5)
    layers = {layer.name: layer for layer in compare(a, b).layers}
    assert layers.keys() == truths.keys()
    for name, truth in truths.items():
        assert [(expert.kind, expert.source) for expert in layers[name].experts] == named(truth)
        held = {slot.source for slot in truth}
        assert layers[name].missing == tuple(i for i in range(len(truth)) if i not in held)


def _renumbered(truth: Truth, order: list[int]) -> Truth:
    return [Slot(slot.kind, None if slot.source is None else order[slot.source]) for slot in truth]
