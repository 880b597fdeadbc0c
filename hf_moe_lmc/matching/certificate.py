"""The independent check of an assignment: by linear programming duality, without any of the solvers' code."""

import torch
from jaxtyping import Float
from torch import Tensor

from .assignment import Assignment

_ROWS = 32


def certify(assignment: Assignment, similarity: Float[Tensor, "n n"]) -> float:
    """How much any permutation could exceed this one at most: `bound - objective`, in float64, never below zero.

    For any prices v, no permutation q exceeds `bound = sum_j v_j + sum_i max_j (S_ij - v_j)`, since each
    `S_iq(i) - v_q(i)` is at most its row's maximum. A gap of zero proves the assignment optimal.

    Args:
        assignment: any permutation, found in whatever way; the objective it states is not used.
        similarity: S, the matrix it was found for.
    """
    columns = assignment.permutation.index.to(similarity.device)
    own = similarity.gather(1, columns[:, None])[:, 0].double()
    prices = assignment.prices
    prices = _longest_paths(similarity, columns, own) if prices is None else prices.to(own)
    gains = [(rows.double() - prices).amax(dim=1) for rows in similarity.split(_ROWS) if rows.numel()]
    return sum(
        ((gain - x).sum().item() for gain, x in zip(gains, (own - prices[columns]).split(_ROWS), strict=False)), 0.0
    )


def _longest_paths(similarity: Tensor, columns: Tensor, own: Tensor) -> Tensor:
    """`v_j = max_i (S_ij - S_ip(i) + v_p(i))`, the prices that prove an optimal p; n rounds reach them if p is one."""
    prices, steps = torch.zeros_like(own), similarity.double() - own[:, None]
    for _ in range(len(own)):
        raised = torch.maximum(prices, (steps + prices[columns, None]).amax(dim=0))
        if torch.equal(raised, prices):
            break
        prices = raised
    return prices
