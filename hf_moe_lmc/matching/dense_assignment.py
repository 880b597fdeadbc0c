"""Assignment of matrices of moderate size: Jonker-Volgenant on the whole matrix, and the prices that prove it."""

import numpy as np
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment

try:
    from lap import lapjvh
except ImportError:  # lapx has no wheel for every platform
    lapjvh = None

_ROWS = 32


def solve_dense(similarity: Float[np.ndarray, "n n"]) -> tuple[Int64[np.ndarray, " n"], str]:
    """The column of every row in an optimal assignment, and the solver's name; O(n^3).

    Without a shift, rows of large norm own the best entry of most columns, and the column reduction with which
    Jonker-Volgenant starts assigns few rows. Costs `max_j S_ij - S_ij` put all rows on one scale.
    Source: `lapjvh` of lapx, else `scipy.optimize.linear_sum_assignment` (Crouse 2016).
    """
    if lapjvh is None:
        return linear_sum_assignment(similarity, maximize=True)[1], "scipy"
    costs = similarity.max(axis=1, keepdims=True) - similarity
    return lapjvh(costs, return_cost=False)[1], "lapx"


def proving_prices(similarity: Float[np.ndarray, "n n"], columns: Int64[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Prices v at which every row of an optimal assignment gains most from its own column, up to rounding.

    `v_j = max(v_j, S_ij - S_ip(i) + v_p(i))`, repeated for the rows whose price rose (Bellman-Ford): longest paths,
    which are finite since the assignment is optimal.
    """
    n = len(similarity)
    own, owners = similarity[np.arange(n), columns], np.argsort(columns)
    prices, active = np.zeros_like(own), np.arange(n)
    for _ in range(n):
        raised = prices.copy()
        for rows in np.split(active, range(_ROWS, len(active), _ROWS)):
            steps = similarity[rows] - (own[rows] - prices[columns[rows]])[:, None]
            np.maximum(raised, steps.max(axis=0), out=raised)
        active = owners[np.flatnonzero(raised > prices)]
        if not len(active):
            break
        prices = raised
    return prices
