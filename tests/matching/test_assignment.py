import importlib.util
import sys
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lap import lapjvh
from scipy.optimize import linear_sum_assignment

from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.matching import Assignment, assignment_solvers, certify, solve_assignment, solve_assignments
from hf_moe_lmc.matching import assignment as routes
from hf_moe_lmc.matching.assignment_solvers import solve_by_candidates
from hf_moe_lmc.symmetry import Permutation
from tests.matching.similarities import KINDS, similarity

ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6}


def check(found: Assignment, matrix: torch.Tensor) -> None:
    """Equal to scipy's optimum, and proven, relative to the size of the terms; the proof checked in numpy as well."""
    exact = matrix.double().numpy()
    best = exact[linear_sum_assignment(exact, maximize=True)].sum()
    own = exact[np.arange(len(exact)), found.permutation.index.numpy()]
    tolerance = ROUNDING[matrix.dtype] * max(np.abs(own).sum(), np.abs(exact).max(initial=0))
    assert found.objective == pytest.approx(own.sum(), abs=1e-12 * np.abs(own).sum())
    assert best - own.sum() <= tolerance
    assert 0 <= certify(found, matrix) <= tolerance
    if found.prices is not None:
        prices = found.prices.double().numpy()
        bound = prices.sum() + sum(max(row) for row in (exact - prices).tolist())
        assert bound - own.sum() <= tolerance


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 7), st.integers(0, 1000), st.sampled_from(KINDS))
def test_equals_brute_force(n, seed, kind):
    matrix = similarity(kind, n, seed)
    orders = np.array(list(permutations(range(n))), dtype=int)
    best = matrix.numpy()[np.arange(n), orders].sum(axis=1).max()
    found = solve_assignment(matrix)
    scale = 1e-12 * max(1.0, matrix.abs().sum().item())
    assert found.objective == pytest.approx(best, abs=scale)
    assert certify(found, matrix) <= scale


@settings(max_examples=800, deadline=None)
@given(st.integers(0, 100), st.integers(0, 10_000), st.sampled_from(KINDS), st.sampled_from(list(ROUNDING)))
def test_small_ones_equal_scipy_and_are_certified(n, seed, kind, dtype):
    matrix = similarity(kind, n, seed, dtype)
    check(solve_assignment(matrix), matrix)


@settings(max_examples=300, deadline=None)
@given(st.integers(64, 130), st.integers(0, 10_000), st.sampled_from(KINDS), st.sampled_from(list(ROUNDING)))
def test_candidates_equal_scipy_and_are_certified(n, seed, kind, dtype):
    """The route of large matrices, on ones small enough to draw many; 32 candidates are still a choice."""
    matrix = similarity(kind, n, seed, dtype)
    found = solve_by_candidates(matrix)
    if found is not None:
        columns, prices = found
        objective = matrix.gather(1, columns[:, None]).double().sum().item()
        check(Assignment(columns.long(), objective, "candidates", prices), matrix)
    else:
        assert kind in ("rank one", "heavy columns", "constant", "zero", "duplicate rows and columns", "near ties")


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10_000), st.sampled_from(KINDS), st.sampled_from(list(ROUNDING)))
def test_shifted_ones_equal_scipy_and_are_certified(n, seed, kind, dtype):
    """Large matrices are shifted; here small ones, for there are more of them."""
    matrix = similarity(kind, n, seed, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assignment_solvers, "_SHIFTED_FROM", 0)
        check(solve_assignment(matrix), matrix)


@settings(max_examples=100, deadline=None)
@given(
    *(st.integers(0, 4), st.integers(0, 110), st.integers(0, 10_000)),
    *(st.sampled_from(KINDS), st.sampled_from(list(ROUNDING))),
)
def test_in_a_batch_each_equals_scipy_and_is_certified(size, n, seed, kind, dtype):
    matrices = torch.stack([similarity(kind, n, seed + number, dtype) for number in range(size + 1)])
    found = solve_assignments(matrices)
    assert len(found) == len(matrices)
    for one, matrix in zip(found, matrices, strict=True):
        check(one, matrix)


@pytest.mark.parametrize("n", [128, 300])
def test_columns_of_uneven_norm_are_solved_transposed(n):
    """As fast as the transposed problem, and not by solving the one that is slow."""
    shapes = []

    def spy(costs, **keywords):
        shapes.append(costs)
        return lapjvh(costs, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assignment_solvers, "lapjvh", spy)
        heavy = similarity("heavy columns", n)
        columns = assignment_solvers.solve_dense(heavy.numpy())[0]
        rows = assignment_solvers.solve_dense(heavy.T.contiguous().numpy())[0]
    np.testing.assert_array_equal(columns[rows], np.arange(n))
    np.testing.assert_array_equal(*shapes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "solver"), [(300, "lapx"), (700, "candidates")])
def test_every_route_by_size(monkeypatch, kind, n, solver):
    monkeypatch.setattr(routes, "_PRICED_FROM", 256)
    monkeypatch.setattr(routes, "_CANDIDATES_FROM", 500)
    matrix = similarity(kind, n, dtype=torch.float32)
    found = solve_assignment(matrix)
    check(found, matrix)
    assert found.solver in {"siblings": {"row maxima"}, "gaussian": {solver}}.get(kind, {solver, "lapx", "row maxima"})


def test_where_candidates_do_not_suffice_the_whole_matrix_is_solved(monkeypatch):
    monkeypatch.setattr(routes, "_PRICED_FROM", 256)
    monkeypatch.setattr(routes, "_CANDIDATES_FROM", 256)
    monkeypatch.setattr("hf_moe_lmc.matching.assignment_solvers._ROUNDS", 0)
    matrix = similarity("gaussian", 260)
    found = solve_assignment(matrix)
    assert found.solver == "lapx"
    check(found, matrix)


@pytest.mark.parametrize(("kind", "n"), [("half siblings", 400), ("heavy rows", 200), ("near ties", 200)])
def test_few_rounds_suffice_since_each_takes_twice_the_candidates(monkeypatch, kind, n):
    """As many candidates in every round would leave rows of these without the column that they need."""
    for name, value in {"_CANDIDATES": 8, "_TIED": 64, "_ROUNDS": 3}.items():
        monkeypatch.setattr(assignment_solvers, name, value)
    matrix = similarity(kind, n, dtype=torch.float32)
    columns, prices = solve_by_candidates(matrix)
    objective = matrix.gather(1, columns[:, None]).double().sum().item()
    check(Assignment(columns.long(), objective, "candidates", prices), matrix)


def test_without_lapx_scipy_solves(monkeypatch):
    monkeypatch.setitem(sys.modules, "lap", None)  # makes the import fail
    monkeypatch.setattr(routes, "_PRICED_FROM", 256)
    monkeypatch.setattr(routes, "_CANDIDATES_FROM", 256)
    without_lapx = second_copy(assignment_solvers)
    monkeypatch.setattr(routes, "solve_dense", without_lapx.solve_dense)
    monkeypatch.setattr(routes, "solve_by_candidates", without_lapx.solve_by_candidates)
    matrix = similarity("gaussian", 260)
    found = solve_assignment(matrix)
    assert found.solver == "scipy"
    check(found, matrix)


def second_copy(module):
    """The module executed anew; reloading in place would give its classes a second identity for every later test."""
    copy = importlib.util.module_from_spec(module.__spec__)
    module.__spec__.loader.exec_module(copy)
    return copy


@pytest.mark.parametrize("n", [3, 300])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_refused(n, value):
    matrix = similarity("gaussian", n)
    matrix[n // 2, 1] = value
    with pytest.raises(BadInputError, match=f"{n} x {n} holds NaN or infinite"):
        solve_assignment(matrix)


def test_half_precision_is_solved_in_float32():
    matrix = similarity("siblings", 300).bfloat16()
    found = solve_assignment(matrix)
    check(found, matrix.float())
    assert found.prices is None  # so that they are sought
    assert certify(found, matrix) == certify(found, matrix.float())


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(0, 1000), st.sampled_from(["gaussian", "heavy rows", "few values"]))
def test_control_the_certificate_shows_what_a_wrong_assignment_lacks(n, seed, kind):
    """The gap is never below the true shortfall, whatever the prices say."""
    matrix = similarity(kind, n, seed)
    best = solve_assignment(matrix)
    generator = torch.Generator().manual_seed(seed)
    wrong = Permutation.random(n, generator=generator)
    lacking = best.objective - matrix.gather(1, wrong.index[:, None]).sum().item()
    for prices in (None, torch.randn(n, generator=generator, dtype=torch.float64)):
        # The objective that it states is a lie; the check must not believe it.
        gap = certify(Assignment(wrong.index, best.objective, "wrong", prices), matrix)
        assert gap >= lacking - 1e-9 * max(1.0, matrix.abs().sum().item())


def test_planted_permutation_is_found():
    planted = torch.randperm(123, generator=torch.Generator().manual_seed(0))
    matrix = torch.zeros(123, 123)
    matrix[torch.arange(123), planted] = 1.0
    assert torch.equal(solve_assignment(matrix).permutation.index, planted)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(0, 1000))
def test_grouped_equals_brute_force(groups, size, seed):
    """The best of all orders that keep groups of neighbours together."""
    n = groups * size
    matrix = similarity("gaussian", n, seed)
    admitted = [
        order
        for order in permutations(range(n))
        if all(len({order[i] // size for i in range(g, g + size)}) == 1 for g in range(0, n, size))
    ]
    best = max(sum(matrix[i, j].item() for i, j in enumerate(order)) for order in admitted)
    found = solve_assignment(matrix, groups)
    assert tuple(found.permutation.index.tolist()) in admitted
    assert found.objective == pytest.approx(best, abs=1e-12)
    assert matrix[torch.arange(n), found.columns].sum().item() == pytest.approx(best, abs=1e-12)
    assert 0 <= certify(found, matrix, groups) <= 1e-11
    for order in admitted:
        # Control: of any other order the gap is at least what it lacks.
        lacking = best - sum(matrix[i, j].item() for i, j in enumerate(order))
        wrong = Assignment(torch.tensor(order, dtype=torch.int64), 0.0, "wrong")
        assert certify(wrong, matrix, groups) >= lacking - 1e-11


@settings(deadline=None)
@given(st.integers(0, 4), st.integers(0, 40), st.integers(0, 1000), st.sampled_from(KINDS))
def test_a_batch_is_solved_as_one_after_the_other(size, n, seed, kind):
    batch = torch.stack([similarity(kind, n, seed + i) for i in range(size)] or [torch.zeros(n, n)])[:size]
    for found, one in zip(solve_assignments(batch), batch, strict=True):
        alone = solve_assignment(one)
        assert torch.equal(found.columns, alone.columns)
        assert found.objective == pytest.approx(alone.objective, rel=1e-12, abs=1e-12 * one.abs().sum().item())
        assert found.solver == alone.solver


@pytest.mark.parametrize("n", [3, 400])
def test_a_batch_may_need_gradients_and_may_not_hold_infinity(n):
    batch = torch.stack([similarity("siblings", n, seed, torch.float32) for seed in range(2)]).requires_grad_()
    for found, one in zip(solve_assignments(batch), batch.detach(), strict=True):
        check(found, one)
    batch = batch.detach()
    batch[1, 0, 2] = -torch.inf
    with pytest.raises(BadInputError, match=f"{n} x {n} holds NaN or infinite"):
        solve_assignments(batch)
