from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_moe_lmc.matching import solve_assignment
from hf_moe_lmc.matching.assignment import solve_grouped_assignment


@given(st.integers(1, 6), st.integers(0, 1000), st.booleans())
def test_equals_brute_force(n, seed, ties):
    similarity = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if ties:
        similarity = similarity.round()
    best = max(sum(similarity[i, j].item() for i, j in enumerate(order)) for order in permutations(range(n)))
    assignment = solve_assignment(similarity)
    assert assignment.objective == pytest.approx(best, abs=1e-12)
    assert similarity[torch.arange(n), assignment.permutation.index].sum().item() == pytest.approx(best, abs=1e-12)


def test_planted_permutation_is_found():
    planted = torch.randperm(123, generator=torch.Generator().manual_seed(0))
    similarity = torch.zeros(123, 123)
    similarity[torch.arange(123), planted] = 1.0
    assert torch.equal(solve_assignment(similarity).permutation.index, planted)


@given(st.integers(1, 3), st.integers(1, 2), st.integers(0, 1000))
def test_grouped_equals_brute_force(groups, size, seed):
    """The best of all orders that keep groups of neighbours together."""
    n = groups * size
    similarity = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    admitted = [
        order
        for order in permutations(range(n))
        if all(len({order[i] // size for i in range(g, g + size)}) == 1 for g in range(0, n, size))
    ]
    best = max(sum(similarity[i, j].item() for i, j in enumerate(order)) for order in admitted)
    found = solve_grouped_assignment(similarity, groups)
    assert tuple(found.permutation.index.tolist()) in admitted
    assert found.objective == pytest.approx(best, abs=1e-12)
    assert similarity[torch.arange(n), found.permutation.index].sum().item() == pytest.approx(best, abs=1e-12)
