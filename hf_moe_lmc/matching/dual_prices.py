"""Dual prices of an assignment, in passes over blocks of rows where the similarity matrix lives (CPU or GPU).

A price v_j per column shifts the gain of row i from column j to `S_ij - v_j`. The prices that prove an assignment
optimal are those at which every row gains most from its own column. Nothing of the size of the matrix is allocated.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

_ROWS = 32
_GROUP = 32


def gains(similarity: Float[Tensor, "m n"], prices: Float[Tensor, " n"]) -> Iterator[Float[Tensor, "b n"]]:
    """`S_ij - v_j`, a block of rows after the other, each in the memory of the one before."""
    block = torch.empty_like(similarity[:_ROWS])
    for rows in similarity.split(_ROWS):
        yield torch.sub(rows, prices, out=block[: len(rows)])


def starting_prices(similarity: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """Prices that spread the demand of the rows over the columns, near the optimal ones; n >= 64.

    Two rounds: row i may keep the second best `u_i = max2_j (S_ij - v_j)`, and column j costs what its second best
    row would pay, `v_j = max2_i (S_ij - u_i)`. The second best, since the best is the partner that shall win. It is
    taken over the maxima of groups of 32, which are cheap and all but never join the two.
    """
    prices = similarity.new_zeros(len(similarity))
    for _ in range(2):
        raises = [rows.sub_(_second_best(rows)).amax(dim=0) for rows in gains(similarity, prices)]
        prices = prices + torch.stack(raises).topk(2, dim=0).values[1]
    return prices


def row_maxima(similarity: Float[Tensor, "m n"], prices: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
    """`max_j (S_ij - v_j)` of every row."""
    return torch.cat([rows.amax(dim=1) for rows in gains(similarity, prices)])


def best_columns(similarity: Float[Tensor, "m n"], prices: Float[Tensor, " n"]) -> Int[Tensor, " m"]:
    """The column of every row with the largest `S_ij - v_j`."""
    return torch.cat([_argmax(rows) for rows in gains(similarity, prices)])


def largest_gains(
    similarity: Float[Tensor, "m n"], prices: Float[Tensor, " n"], k: int, limit: int
) -> Int[Tensor, " c"]:
    """Keys `i * n + j` of the largest `S_ij - v_j` of every row: k or somewhat more columns per row, ascending.

    Those that reach the k-th largest maximum of some 4 k groups: no row is sorted. Of equal ones,
    all; it stops where there are more than `limit`.
    """
    n, keys = similarity.shape[1], []
    size = max(1, n // (4 * k))
    groups = n // size
    for number, rows in enumerate(gains(similarity, prices)):
        maxima = rows[:, : groups * size].reshape(len(rows), size, groups).amax(dim=1)
        least = maxima.topk(min(k, groups), dim=1, sorted=False).values.amin(dim=1, keepdim=True)
        keys.append(_at_least(rows, least) + number * _ROWS * n)
        if (limit := limit - len(keys[-1])) < 0:
            break
    return torch.cat(keys)


def row_margins(
    similarity: Float[Tensor, "n n"], columns: Int[Tensor, " n"], prices: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Difference of `S_ip(i) - v_p(i)` and the largest other `S_ij - v_j` of its row."""
    margins = []
    for rows, own in zip(similarity.split(_ROWS), columns[:, None].split(_ROWS), strict=True):
        gains = rows - prices
        chosen = gains.gather(1, own)[:, 0]
        margins.append(chosen - gains.scatter_(1, own, -torch.inf).amax(dim=1))
    return torch.cat(margins)


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


def _second_best(rows: Float[Tensor, "m n"]) -> Float[Tensor, "m 1"]:
    groups = rows.shape[1] // _GROUP
    return rows[:, : groups * _GROUP].reshape(-1, _GROUP, groups).amax(dim=1).topk(2, dim=1).values[:, 1:]


def _argmax(rows: Float[Tensor, "m n"]) -> Int[Tensor, " m"]:
    # numpy's argmax is vectorised; torch's takes four times as long on a CPU.
    return torch.from_numpy(np.argmax(rows.numpy(), axis=1)) if rows.device.type == "cpu" else rows.argmax(dim=1)


def _at_least(rows: Float[Tensor, "m n"], least: Float[Tensor, "m 1"]) -> Int[Tensor, " c"]:
    if rows.device.type == "cpu":  # numpy takes a quarter of the time
        return torch.from_numpy(np.flatnonzero(rows.numpy() >= least.numpy()))
    return torch.nonzero((rows >= least).flatten())[:, 0]
