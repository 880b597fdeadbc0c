"""The linear assignment problem: the one place where it is solved."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.symmetry import Permutation

from .candidate_assignment import solve_by_candidates
from .dense_assignment import proving_prices, solve_dense
from .price_passes import best_columns

# Measured crossovers: from the first on, prices are cheap beside the solution; from the second on, candidates beat the
# whole matrix.
_PRICED_FROM = 256
_CANDIDATES_FROM = 1280


@dataclass(frozen=True)
class Assignment:
    """An optimal assignment.

    Args:
        permutation: p, `[n]`; row i is assigned column p[i].
        objective: `sum_i similarity[i, p[i]]`.
        solver: what found it: "row maxima", "candidates", "lapx" or "scipy".
        prices: v, `[n]`, a dual solution: `sum_i max_j (S_ij - v_j) + sum_j v_j` bounds every assignment from above.
            None for small n; `certify` then finds some.
    """

    permutation: Permutation
    objective: float
    solver: str
    prices: Float[Tensor, " n"] | None = None


def solve_assignment(similarity: Float[Tensor, "n n"]) -> Assignment:
    """The permutation p that maximises `sum_i similarity[i, p[i]]`, with prices that prove it; see `certify`.

    Routes, each exact up to the rounding of `similarity`'s dtype: where the best columns of the rows at some prices
    are all different, they are the optimum, since no row could gain more; large n by candidates; else
    Jonker-Volgenant on the whole matrix.

    Args:
        similarity: S, on any device; half precision is computed in float32.

    Raises:
        BadInputError: an entry is NaN or infinite.
    """
    n = len(similarity)
    similarity = similarity.detach().to(torch.promote_types(similarity.dtype, torch.float32))
    # The sum is NaN or infinite if an entry is, at a tenth of the cost of looking at each; it may also overflow.
    if not math.isfinite(similarity.sum()) and not similarity.isfinite().all():
        raise BadInputError(f"a similarity of {n} x {n} holds NaN or infinite values")
    if n < _PRICED_FROM:
        solution, solver = solve_dense(similarity.cpu().numpy())
        return _assignment(similarity, torch.from_numpy(solution), solver, None)
    prices = similarity.amax(dim=0) / 2
    # A few rows mostly show whether two want one column.
    for rows in (similarity[: n // 8], similarity):
        columns = best_columns(rows, prices)
        if len(columns.unique()) < len(columns):
            break
    else:
        return _assignment(similarity, columns, "row maxima", prices)
    if n >= _CANDIDATES_FROM and (found := solve_by_candidates(similarity)) is not None:
        return _assignment(similarity, found[0], "candidates", found[1])
    matrix = similarity.cpu().numpy()
    solution, solver = solve_dense(matrix)
    prices = torch.from_numpy(proving_prices(matrix, solution))
    return _assignment(similarity, torch.from_numpy(solution), solver, prices)


def solve_grouped_assignment(similarity: Float[Tensor, "n n"], groups: int) -> Assignment:
    """As `solve_assignment`, over the permutations that map groups of n / `groups` neighbours to groups; exactly.

    Two levels: the best assignment between every pair of groups fills a table, and one assignment on it pairs the
    groups (the wreath product `S_{n/g} wr S_g`).
    """
    if groups == 1:
        return solve_assignment(similarity)
    size = similarity.shape[0] // groups
    blocks = similarity.reshape(groups, size, groups, size).transpose(1, 2)
    inside = [[solve_assignment(block) for block in row] for row in blocks]
    table = torch.tensor([[found.objective for found in row] for row in inside], dtype=torch.float64)
    outside = solve_assignment(table)
    pairs = enumerate(outside.permutation.index.tolist())
    order = torch.cat([inside[group][other].permutation.index + other * size for group, other in pairs])
    return Assignment(Permutation(order), outside.objective, outside.solver)


def _assignment(similarity: Tensor, columns: Tensor, solver: str, prices: Tensor | None) -> Assignment:
    columns = columns.long().to(similarity.device)
    objective = similarity.gather(1, columns[:, None]).sum(dtype=torch.float64).item()
    return Assignment(Permutation(columns.cpu()), objective, solver, None if prices is None else prices.cpu())
