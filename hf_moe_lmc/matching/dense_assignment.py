"""Assignment of matrices of moderate size: Jonker-Volgenant on the whole matrix, and the prices that prove it."""

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy.optimize import linear_sum_assignment

try:
    from lap import lapjvh, lapjvh_batch
except ImportError:  # lapx has no wheel for every platform
    lapjvh = lapjvh_batch = None

_SHIFTED_FROM = 96  # measured: below, shifting costs more than it gains
_ROWS = 32
_UNEVEN = 1.5  # measured: 1.04 at most where norms are alike, 2.5 at least where those of columns spread


def solve_dense(similarity: Float[np.ndarray, "n n"]) -> tuple[Int64[np.ndarray, " n"], float, str]:
    """The column of every row in an optimal assignment, the objective in float64, and the solver's name; O(n^3).

    Without a shift, rows of large norm own the best entry of most columns, and the column reduction with which
    Jonker-Volgenant starts assigns few rows. Costs `max_j S_ij - S_ij` put all rows on one scale; where the columns
    are the ones of uneven norm, the transposed problem is solved, in a third of the time.
    Source: `lapjvh` of lapx; without it, `scipy.optimize.linear_sum_assignment` (Crouse 2016).
    """
    if lapjvh is None:
        columns = linear_sum_assignment(similarity, maximize=True)[1]
        return columns, _objective(similarity, columns), "scipy"
    if len(similarity) < _SHIFTED_FROM:
        cost, _, columns = lapjvh(-similarity)
        return columns, 0.0 - cost, "lapx"
    # numpy takes four times as long along rows.
    rows, columns = torch.from_numpy(similarity).amax(dim=1).numpy(), similarity.max(axis=0)
    if _variation(columns) > _UNEVEN * _variation(rows):
        found = np.argsort(lapjvh(np.ascontiguousarray((columns - similarity).T), return_cost=False)[1])
    else:
        found = lapjvh(rows[:, None] - similarity, return_cost=False)[1]
    return found, _objective(similarity, found), "lapx"


def solve_dense_batch(
    similarities: Float[np.ndarray, "b n n"],
) -> tuple[Int64[np.ndarray, "b n"], Float64[np.ndarray, " b"], str]:
    """`solve_dense` of each; of small ones, all in one call, on as many threads as torch has."""
    if lapjvh_batch is None or similarities.shape[1] >= _SHIFTED_FROM:
        found = [solve_dense(one) for one in similarities]
        columns, objectives = [columns for columns, _, _ in found], [objective for _, objective, _ in found]
    else:
        costs, _, columns = lapjvh_batch(-similarities, n_threads=torch.get_num_threads())
        objectives = 0.0 - costs
    solver = "scipy" if lapjvh is None else "lapx"
    return np.array(columns, np.int64).reshape(similarities.shape[:2]), np.array(objectives, np.float64), solver


def proving_prices(similarity: Float[np.ndarray, "n n"], columns: Int64[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Prices v at which every row of an optimal assignment gains most from its own column, up to rounding.

    `v_j = max(v_j, S_ij - S_ip(i) + v_p(i))`, repeated for the rows whose price rose (Bellman-Ford): longest paths,
    which are finite since the assignment is optimal.
    """
    n = len(similarity)
    own, owners = similarity[np.arange(n), columns], np.argsort(columns)
    prices, active = np.zeros_like(own), np.arange(n)
    for _ in range(n):
        before = prices.copy()
        for rows in np.split(active, range(_ROWS, len(active), _ROWS)):
            steps = similarity[rows] - (own[rows] - prices[columns[rows]])[:, None]
            np.maximum(prices, steps.max(axis=0), out=prices)
        active = owners[np.flatnonzero(prices > before)]
        if not len(active):
            break
    return prices


def _objective(similarity: np.ndarray, columns: np.ndarray) -> float:
    return float(similarity[np.arange(len(columns)), columns].sum(dtype=np.float64))


def _variation(values: Float[np.ndarray, " n"]) -> float:
    centred = values - values.sum() / len(values)
    return float(centred @ centred)  # numpy's var takes five times as long on a short array
