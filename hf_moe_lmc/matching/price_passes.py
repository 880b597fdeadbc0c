"""Passes over a similarity matrix where it lives (CPU or GPU), in blocks of rows: nothing of its size is allocated.

A price v_j per column shifts what row i gains from column j to `S_ij - v_j`. The prices that prove an assignment
optimal are those at which every row gains most from its own column.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_ROWS = 32
_GROUP = 32


def starting_prices(similarity: Float[Tensor, "n n"], rounds: int = 2) -> Float[Tensor, " n"]:
    """Prices that spread the demand of the rows over the columns, near the optimal ones; n >= 64.

    Each round: row i may keep the second best `u_i = max2_j (S_ij - v_j)`, and column j costs what its second best
    row would pay, `v_j = max2_i (S_ij - u_i)`. The second best, since the best is the partner that shall win. It is
    taken over the maxima of groups of 32, which are cheap and all but never join the two.
    """
    prices = similarity.new_zeros(len(similarity))
    for _ in range(rounds):
        offers = [(rows - _second_best(rows - prices)).amax(dim=0) for rows in similarity.split(_ROWS)]
        prices = torch.stack(offers).topk(2, dim=0).values[1]
    return prices


def row_maxima(
    similarity: Float[Tensor, "m n"], prices: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"]]:
    """`max_j (S_ij - v_j)` of every row, and where it is reached."""
    found = [_maxima(rows - prices) for rows in similarity.split(_ROWS)]
    return torch.cat([maxima for maxima, _ in found]), torch.cat([columns for _, columns in found])


def best_columns(similarity: Float[Tensor, "m n"], prices: Float[Tensor, " n"], k: int) -> Int[Tensor, "m k"]:
    """The k columns of every row with the largest `S_ij - v_j`, in any order."""
    return torch.cat([(rows - prices).topk(k, dim=1, sorted=False).indices for rows in similarity.split(_ROWS)])


def _second_best(rows: Float[Tensor, "m n"]) -> Float[Tensor, "m 1"]:
    groups = rows.shape[1] // _GROUP
    return rows[:, : groups * _GROUP].reshape(-1, _GROUP, groups).amax(dim=1).topk(2, dim=1).values[:, 1:]


def _maxima(rows: Float[Tensor, "m n"]) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"]]:
    if rows.device.type != "cpu":
        maxima, columns = rows.max(dim=1)
        return maxima, columns
    # numpy's argmax is vectorised; torch's takes four times as long on a CPU.
    columns = torch.from_numpy(np.argmax(rows.numpy(), axis=1))
    return rows.take_along_dim(columns[:, None], dim=1)[:, 0], columns


def row_margins(
    similarity: Float[Tensor, "n n"], columns: Int[Tensor, " n"], prices: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """By how much `S_ip(i) - v_p(i)` exceeds every other `S_ij - v_j` of its row."""
    margins = []
    for rows, own in zip(similarity.split(_ROWS), columns[:, None].split(_ROWS), strict=True):
        gains = rows - prices
        chosen = gains.gather(1, own)[:, 0]
        margins.append(chosen - gains.scatter_(1, own, -torch.inf).amax(dim=1))
    return torch.cat(margins)
