"""The two exact solvers of a linear assignment problem: on the whole matrix, and on a few candidates per row.

Whole: Jonker-Volgenant (`lapjvh` of lapx). Candidates: column generation (Gilmore and Gomory 1961), an optimum over few
columns per row with prices at which no other column is worth more to any row is an optimum over all columns. Only the
candidates leave the device.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from torch import Tensor

from .dual_prices import largest_gains, row_maxima, starting_prices

try:
    from lap import lapjvh, lapjvh_batch, lapmod
except ImportError:  # lapx has no wheel for every platform
    lapjvh = lapjvh_batch = lapmod = None

_SHIFTED_FROM = 96  # measured: below, shifting costs more than it gains
_UNEVEN = 1.5  # measured: 1.04 at most where norms are alike, 2.5 at least where those of columns spread
_CANDIDATES = 32
_TIED = 4  # with so many times more, solving the whole matrix is cheaper
_ROUNDS = 8


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
    row_best, column_best = torch.from_numpy(similarity).amax(dim=1).numpy(), similarity.max(axis=0)
    if _variation(column_best) > _UNEVEN * _variation(row_best):
        columns = np.argsort(lapjvh(np.ascontiguousarray((column_best - similarity).T), return_cost=False)[1])
    else:
        columns = lapjvh(row_best[:, None] - similarity, return_cost=False)[1]
    return columns, _objective(similarity, columns), "lapx"


def solve_dense_batch(
    similarities: Float[np.ndarray, "b n n"],
) -> tuple[Int64[np.ndarray, "b n"], Float64[np.ndarray, " b"], str]:
    """`solve_dense` of each; of small ones, all in one call, on as many threads as torch has."""
    if lapjvh_batch is None or similarities.shape[1] >= _SHIFTED_FROM:
        solutions = [solve_dense(one) for one in similarities]
        columns, objectives = [one[0] for one in solutions], [one[1] for one in solutions]
    else:
        costs, _, columns = lapjvh_batch(-similarities, n_threads=torch.get_num_threads())
        objectives = 0.0 - costs
    solver = "scipy" if lapjvh is None else "lapx"
    return np.array(columns, np.int64).reshape(similarities.shape[:2]), np.array(objectives, np.float64), solver


def solve_by_candidates(
    similarity: Float[Tensor, "n n"],
) -> tuple[Int64[Tensor, " n"], Float[Tensor, " n"]] | None:
    """An optimal assignment and prices that prove it up to rounding, or None.

    None where the candidates do not suffice, or lapx is absent.

    Args:
        similarity: S, on any device.
    """
    if lapmod is None:
        return None
    n, device = len(similarity), similarity.device
    prices = starting_prices(similarity)
    limit = _TIED * n * _CANDIDATES
    keys = largest_gains(similarity, prices, _CANDIDATES, limit).cpu().numpy()
    if len(keys) > limit or not _Candidates.at(keys, similarity).admit_an_assignment():
        return None
    exact = prices.double().cpu().numpy()
    rounding = 4 * torch.finfo(similarity.dtype).eps
    for turn in range(1, _ROUNDS + 1):
        candidates = _Candidates.at(keys, similarity)
        columns = candidates.assign(exact)
        exact = candidates.raise_prices(columns, exact)
        prices, chosen = torch.from_numpy(exact).to(similarity), torch.from_numpy(columns).to(device)
        own = similarity.gather(1, chosen[:, None])[:, 0]
        excess = row_maxima(similarity, prices) - (own - prices[chosen])
        violated = torch.nonzero(excess > rounding * (own.abs() + prices[chosen].abs()))[:, 0]
        # Those that still miss a column miss more of them: twice as many as before, for few rows.
        missing = largest_gains(similarity[violated], prices, min(n, _CANDIDATES * 2**turn), limit)
        if len(missing) > limit:
            return None
        more = _union(keys, (violated[missing // n] * n + missing % n).cpu().numpy())
        if len(more) == len(keys):
            return chosen.cpu(), prices.cpu()
        keys = more
    return None


def _union(keys: Int64[np.ndarray, " c"], others: Int64[np.ndarray, " d"]) -> Int64[np.ndarray, " e"]:
    """All keys of both, ascending; sorting takes a tenth of the hashing of np.union1d."""
    merged = np.sort(np.concatenate([keys, others]))
    return merged[np.append(True, merged[1:] > merged[:-1])]


@dataclass(frozen=True)
class _Candidates:
    """A sparse similarity, rows in order: row i has the columns `columns[starts[i] : starts[i + 1]]`."""

    starts: Int64[np.ndarray, " _"]
    columns: Int64[np.ndarray, " c"]
    values: Float64[np.ndarray, " c"]

    @classmethod
    def at(cls, keys: Int64[np.ndarray, " c"], similarity: Float[Tensor, "n n"]) -> "_Candidates":
        """The entries `S[key // n, key % n]`; `keys` ascend, and every row has one."""
        n = len(similarity)
        values = similarity.flatten()[torch.from_numpy(keys).to(similarity.device)].double().cpu().numpy()
        return cls(np.searchsorted(keys, np.arange(n + 1) * n), keys % n, values)

    @property
    def rows(self) -> Int64[np.ndarray, " c"]:
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def admit_an_assignment(self) -> bool:
        """Whether all rows can have a candidate of their own; where many compete for few, the solver takes ages."""
        size = len(self.starts) - 1
        graph = csr_array((np.ones_like(self.columns), self.columns, self.starts), (size, size))
        return bool((maximum_bipartite_matching(graph) >= 0).all())

    def assign(self, prices: Float64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The exact optimum over the candidates (LAPMOD, Volgenant 1996); `prices` shorten its work."""
        gains = self.values - prices[self.columns]
        costs = np.maximum.reduceat(gains, self.starts[:-1])[self.rows] - gains
        costs *= 1e5 / (costs.max() or 1.0)  # lapx takes costs below 1e6
        assert lapmod is not None  # without it, `solve_by_candidates` does not come here
        # LAPJVsp of scipy.sparse would do as well, but near ties keep it busy without end.
        columns = lapmod(len(prices), costs, self.starts, self.columns, fast=True, return_cost=False)[0]
        return np.asarray(columns, np.int64)

    def raise_prices(
        self, columns: Int64[np.ndarray, " n"], prices: Float64[np.ndarray, " n"]
    ) -> Float64[np.ndarray, " n"]:
        """The least prices above `prices` at which no row gains more from another candidate than from its own column.

        `v_j = max(v_j, S_ij - S_ip(i) + v_p(i))`, repeated where something changed (Bellman-Ford): of longest paths,
        which are finite since the assignment is optimal.
        """
        rows = self.rows
        own = np.empty_like(prices)
        matched = self.columns == columns[rows]
        own[rows[matched]] = self.values[matched]
        steps, owners, counts = self.values - own[rows], np.argsort(columns), np.diff(self.starts)
        rounding = 1e-13 * np.abs(self.values).max()
        active = np.arange(len(prices))
        for _ in range(len(prices)):
            count = counts[active]
            edges = np.arange(count.sum()) + np.repeat(self.starts[active] - np.cumsum(count) + count, count)
            raised = prices.copy()
            np.maximum.at(raised, self.columns[edges], steps[edges] + np.repeat(prices[columns[active]], count))
            active = owners[np.flatnonzero(raised > prices + rounding)]
            if not len(active):
                break
            prices = raised
        return prices


def _objective(similarity: np.ndarray, columns: np.ndarray) -> float:
    return float(similarity[np.arange(len(columns)), columns].sum(dtype=np.float64))


def _variation(values: Float[np.ndarray, " n"]) -> float:
    centred = values - values.sum() / len(values)
    return float(centred @ centred)  # numpy's var takes five times as long on a short array
