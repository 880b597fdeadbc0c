"""The linear assignment problem: the one place where it is solved."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_moe_lmc.symmetry import Permutation


@dataclass(frozen=True)
class Assignment:
    """An optimal assignment.

    Args:
        permutation: p, `[n]`; row i is assigned column p[i].
        objective: `sum_i similarity[i, p[i]]`.
        solver: what found it.
    """

    permutation: Permutation
    objective: float
    solver: str


def solve_assignment(similarity: Float[Tensor, "n n"]) -> Assignment:
    """The permutation p that maximises `sum_i similarity[i, p[i]]`, exactly, in float64, O(n^3).

    Source: modified Jonker-Volgenant algorithm of `scipy.optimize.linear_sum_assignment` (Crouse 2016).
    """
    matrix = similarity.detach().to("cpu", torch.float64).numpy()
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    objective = float(matrix[rows, columns].sum())
    return Assignment(Permutation(torch.from_numpy(columns).long()), objective, solver="scipy")


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
