"""The linear assignment problem: solved exactly, and certified by duality whatever solver and prices it came with."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.symmetry import Permutation

from .assignment_solvers import solve_by_candidates, solve_dense, solve_dense_batch
from .dual_prices import best_columns, proving_prices

# Measured crossovers: from the first on, passes over the matrix are cheap beside its solution; from the second on,
# candidates and the prices that come with them beat the whole matrix and a search for prices.
_PRICED_FROM = 384
_CANDIDATES_FROM = 1280
_ROWS = 32


class Assignment(NamedTuple):
    """An optimal assignment; a tuple, since making a dataclass would take as long as solving n = 8.

    Args:
        columns: `[n]`; row i is assigned column `columns[i]`.
        objective: `sum_i similarity[i, columns[i]]`.
        solver: the route that found it: "row maxima", "candidates", "lapx" or "scipy".
        prices: v, `[n]`, a dual solution: `sum_i max_j (S_ij - v_j) + sum_j v_j` bounds every assignment from above.
            None where the solver gives none; `certify` then finds some.
    """

    columns: Int64[Tensor, " n"]
    objective: float
    solver: str
    prices: Float[Tensor, " n"] | None = None

    @property
    def permutation(self) -> Permutation:
        """`columns` as a permutation; made where it is asked for, since it takes longer than a small assignment."""
        return Permutation(self.columns)


def solve_assignment(similarity: Float[Tensor, "n n"], groups: int = 1) -> Assignment:
    """The permutation p that maximises `sum_i similarity[i, p[i]]`; `certify` proves it.

    Routes, each exact up to the rounding of `similarity`'s dtype: where the best columns of the rows at some prices
    are all different, they are the optimum, since no row could gain more; large n by candidates; else
    Jonker-Volgenant on the whole matrix.

    Args:
        similarity: S, on any device; half precision is computed in float32.
        groups: of all permutations, those that map groups of n / `groups` neighbours to groups. On two levels: the
            best assignment between every pair of groups fills a table, and one assignment on it pairs the groups
            (the wreath product `S_{n/g} wr S_g`).

    Raises:
        BadInputError: an entry is NaN or infinite.
    """
    if groups > 1:
        return _solve_grouped(similarity, groups)
    similarity = _comparable(similarity)
    if similarity.shape[0] < _PRICED_FROM:
        return _solve_whole(_finite(similarity.numpy(force=True)))
    # The sum is NaN or infinite if an entry is, at a tenth of the cost of looking at each; it may also overflow.
    if not math.isfinite(similarity.detach().sum()):
        _finite(similarity.numpy(force=True))
    return _solve_large(similarity.detach())


def solve_assignments(similarities: Float[Tensor, "b n n"]) -> list[Assignment]:
    """`[solve_assignment(one) for one in similarities]`; the small ones at once."""
    if similarities.shape[1] >= _PRICED_FROM:
        return [solve_assignment(one) for one in similarities]
    columns, objectives, solver = solve_dense_batch(_finite(_comparable(similarities).numpy(force=True)))
    solutions = zip(torch.from_numpy(columns), objectives.tolist(), strict=True)
    return [Assignment(own, objective, solver) for own, objective in solutions]


def certify(assignment: Assignment, similarity: Float[Tensor, "n n"], groups: int = 1) -> float:
    """Upper limit of how much any permutation exceeds this one: `bound - objective`, in float64, never below zero.

    For any prices v, no permutation q exceeds `bound = sum_j v_j + sum_i max_j (S_ij - v_j)`, since each
    `S_iq(i) - v_q(i)` is at most its row's maximum. A gap of zero proves the assignment optimal. Prices that the
    assignment does not bring along are sought.

    Args:
        assignment: any permutation, found in whatever way; the objective it states is not used.
        similarity: S, the matrix it was found for.
        groups: as in `solve_assignment`; no other permutation is taken into account. Bounds of this kind between all
            pairs of groups fill a table, and the bound of that table is the bound.
    """
    similarity = _comparable(similarity)
    if groups > 1:
        return _certify_grouped(assignment, similarity, groups)
    columns, own = assignment.columns.to(similarity.device), _own(assignment, similarity)
    prices = assignment.prices
    if prices is None:
        prices = torch.from_numpy(proving_prices(similarity.detach().cpu().numpy(), assignment.columns.numpy()))
    prices = prices.to(own)
    gains = [(rows.double() - prices).amax(dim=1) for rows in similarity.split(_ROWS) if rows.numel()]
    return sum(
        ((gain - x).sum().item() for gain, x in zip(gains, (own - prices[columns]).split(_ROWS), strict=False)), 0.0
    )


def _blocks_of_groups(similarity: Float[Tensor, "n n"], groups: int) -> Float[Tensor, "b m m"]:
    """The blocks between groups of neighbours: block `g * groups + h` has the rows of group g, the columns of h."""
    size = len(similarity) // groups
    return similarity.reshape(groups, size, groups, size).transpose(1, 2).flatten(0, 1)


def _comparable(similarity: Tensor) -> Tensor:
    """In float32 or better."""
    return similarity.float() if similarity.dtype.itemsize < 4 else similarity


def _finite(similarity: Float[np.ndarray, "*b n n"]) -> Float[np.ndarray, "*b n n"]:
    # The product is NaN or infinite if an entry is, at a third of the cost of looking at each; it may also overflow.
    if not math.isfinite(np.vdot(similarity, similarity)) and not np.isfinite(similarity).all():
        raise BadInputError(f"a similarity of {' x '.join(map(str, similarity.shape))} holds NaN or infinite values")
    return similarity


def _solve_whole(similarity: Float[np.ndarray, "n n"]) -> Assignment:
    columns, objective, solver = solve_dense(similarity)
    return Assignment(torch.from_numpy(columns), objective, solver)


def _solve_large(similarity: Float[Tensor, "n n"]) -> Assignment:
    n, prices = len(similarity), similarity.amax(dim=0) / 2
    # A few rows mostly show whether two want one column.
    for rows in (similarity[: n // 8], similarity):
        columns = best_columns(rows, prices)
        if len(columns.unique()) < len(columns):
            break
    else:
        return _priced(similarity, columns, "row maxima", prices)
    if n >= _CANDIDATES_FROM and (solution := solve_by_candidates(similarity)) is not None:
        return _priced(similarity, solution[0], "candidates", solution[1])
    return _solve_whole(similarity.numpy(force=True))


def _priced(similarity: Tensor, columns: Tensor, solver: str, prices: Tensor) -> Assignment:
    columns = columns.long().to(similarity.device)
    objective = similarity.gather(1, columns[:, None]).sum(dtype=torch.float64).item()
    return Assignment(columns.cpu(), objective, solver, prices.cpu())


def _solve_grouped(similarity: Float[Tensor, "n n"], groups: int) -> Assignment:
    size = len(similarity) // groups
    inside = solve_assignments(_blocks_of_groups(similarity, groups))
    table = torch.tensor([one.objective for one in inside], dtype=torch.float64).view(groups, groups)
    outside = solve_assignment(table)
    pairs = enumerate(outside.columns.tolist())
    columns = torch.cat([inside[group * groups + other].columns + other * size for group, other in pairs])
    return Assignment(columns, outside.objective, outside.solver)


def _certify_grouped(assignment: Assignment, similarity: Tensor, groups: int) -> float:
    blocks = _blocks_of_groups(similarity, groups)
    inside = zip(solve_assignments(blocks), blocks, strict=True)
    bounds = torch.stack([_own(one, block).sum().cpu() + certify(one, block) for one, block in inside])
    bounds = bounds.view(groups, groups)
    size = len(similarity) // groups
    outside = Assignment(assignment.columns[::size] // size, 0.0, assignment.solver)
    lacking = _own(outside, bounds).sum() - _own(assignment, similarity).sum()
    return max(certify(outside, bounds) + lacking.item(), 0.0)  # below zero by rounding


def _own(assignment: Assignment, similarity: Tensor) -> Tensor:
    """`S_ip(i)`."""
    return similarity.gather(1, assignment.columns.to(similarity.device)[:, None])[:, 0].double()
