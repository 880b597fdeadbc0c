"""The independent check of an assignment: by linear programming duality, whatever solver and prices it came with."""

import torch
from jaxtyping import Float
from torch import Tensor

from .assignment import Assignment, blocks_of_groups, comparable, solve_assignments
from .dense_assignment import proving_prices

_ROWS = 32


def certify(assignment: Assignment, similarity: Float[Tensor, "n n"], groups: int = 1) -> float:
    """How much any permutation could exceed this one at most: `bound - objective`, in float64, never below zero.

    For any prices v, no permutation q exceeds `bound = sum_j v_j + sum_i max_j (S_ij - v_j)`, since each
    `S_iq(i) - v_q(i)` is at most its row's maximum. A gap of zero proves the assignment optimal. Prices that the
    assignment does not bring along are sought.

    Args:
        assignment: any permutation, found in whatever way; the objective it states is not used.
        similarity: S, the matrix it was found for.
        groups: as in `solve_assignment`; no other permutation is taken into account. Bounds of this kind between all
            pairs of groups fill a table, and the bound of that table is the bound.
    """
    similarity = comparable(similarity)
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


def _certify_grouped(assignment: Assignment, similarity: Tensor, groups: int) -> float:
    blocks = blocks_of_groups(similarity, groups)
    inside = zip(solve_assignments(blocks), blocks, strict=True)
    bounds = torch.stack([_own(found, block).sum().cpu() + certify(found, block) for found, block in inside])
    bounds = bounds.view(groups, groups)
    size = len(similarity) // groups
    outside = Assignment(assignment.columns[::size] // size, 0.0, assignment.solver)
    lacking = _own(outside, bounds).sum() - _own(assignment, similarity).sum()
    return max(certify(outside, bounds) + lacking.item(), 0.0)  # below zero by rounding


def _own(assignment: Assignment, similarity: Tensor) -> Tensor:
    """`S_ip(i)`."""
    return similarity.gather(1, assignment.columns.to(similarity.device)[:, None])[:, 0].double()
