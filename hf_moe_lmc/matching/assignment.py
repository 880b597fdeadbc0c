"""The linear assignment problem: the one place where it is solved."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.symmetry import Permutation

from .candidate_assignment import solve_by_candidates
from .dense_assignment import solve_dense, solve_dense_batch
from .price_passes import best_columns

# Measured crossovers: from the first on, passes over the matrix are cheap beside its solution; from the second on,
# candidates and the prices that come with them beat the whole matrix and a search for prices.
_PRICED_FROM = 384
_CANDIDATES_FROM = 1280


class Assignment(NamedTuple):
    """An optimal assignment; a tuple, since making a dataclass would take as long as solving n = 8.

    Args:
        columns: `[n]`; row i is assigned column `columns[i]`.
        objective: `sum_i similarity[i, columns[i]]`.
        solver: what found it: "row maxima", "candidates", "lapx" or "scipy".
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
    similarity = comparable(similarity)
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
    columns, objectives, solver = solve_dense_batch(_finite(comparable(similarities).numpy(force=True)))
    found = zip(torch.from_numpy(columns), objectives.tolist(), strict=True)
    return [Assignment(own, objective, solver) for own, objective in found]


def blocks_of_groups(similarity: Float[Tensor, "n n"], groups: int) -> Float[Tensor, "b m m"]:
    """The blocks between groups of neighbours: block `g * groups + h` has the rows of group g, the columns of h."""
    size = len(similarity) // groups
    return similarity.reshape(groups, size, groups, size).transpose(1, 2).flatten(0, 1)


def comparable(similarity: Tensor) -> Tensor:
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
    if n >= _CANDIDATES_FROM and (found := solve_by_candidates(similarity)) is not None:
        return _priced(similarity, found[0], "candidates", found[1])
    return _solve_whole(similarity.numpy(force=True))


def _priced(similarity: Tensor, columns: Tensor, solver: str, prices: Tensor) -> Assignment:
    columns = columns.long().to(similarity.device)
    objective = similarity.gather(1, columns[:, None]).sum(dtype=torch.float64).item()
    return Assignment(columns.cpu(), objective, solver, prices.cpu())


def _solve_grouped(similarity: Float[Tensor, "n n"], groups: int) -> Assignment:
    size = len(similarity) // groups
    inside = solve_assignments(blocks_of_groups(similarity, groups))
    table = torch.tensor([found.objective for found in inside], dtype=torch.float64).view(groups, groups)
    outside = solve_assignment(table)
    pairs = enumerate(outside.columns.tolist())
    columns = torch.cat([inside[group * groups + other].columns + other * size for group, other in pairs])
    return Assignment(columns, outside.objective, outside.solver)
