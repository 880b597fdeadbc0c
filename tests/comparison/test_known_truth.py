"""The battery of known truth: everything that can be done to an expert, alone and two at a time, named right.

`python -m benchmarks.compare truth` tries all combinations, which takes minutes.
"""

import random

import pytest
import torch

from hf_moe_lmc.comparison.experts import compare_experts
from hf_moe_lmc.moe import ExpertBank, SymmetryGroup
from tests.comparison.plants import FAMILIES, case, pairs, plants
from tests.families import SIZES, build

SYMMETRIES, TOPS = ("never", "before", "after", "between"), ("nothing", "bfloat16", "noise")
CASES = [(family, SYMMETRIES[i % 4], TOPS[(i + i // 4) % 3]) for i, family in enumerate(FAMILIES)]


@pytest.mark.parametrize(("family", "symmetry", "top"), CASES)
def test_every_expert_is_named_right(family, symmetry, top):
    alone = list(plants(family))
    # One projection's values that changed by 5 %, in an order that nothing tells, are sometimes taken for others.
    two = [x for x in pairs(family) if not ("transposed_" in x.__name__ and "changed" in x.__name__)]
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


def test_chance_recognises_no_values():
    """Experts so small that many have nearly the same values, and much the same sketches; A's own are recognised."""
    generator = torch.Generator().manual_seed(0)
    a, b = (
        ExpertBank(*(torch.randn(128, *shape, generator=generator) for shape in ((8, 4), (4, 8), (8, 4))))
        for _ in range(2)
    )
    planted = {name: tensor[5].flatten() for name, tensor in a.tensors().items()}
    for name, values in planted.items():
        values = values[torch.randperm(32, generator=generator)]
        getattr(b, name)[3] = values.view_as(getattr(b, name)[3])
    kinds = {expert.slot: (expert.kind, expert.source) for expert in compare_experts(a, b, SymmetryGroup())}
    assert kinds.pop(3) == ("transposed", 5)
    assert set(kinds.values()) == {("unrelated", None)}
