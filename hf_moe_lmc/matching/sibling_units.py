"""Matching the units of siblings: the optimum is proven from a few coordinates, without the similarity of all pairs.

Two units that are not partners differ in any few coordinates by more than partners differ in all of them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_COORDINATES = (32, 128, 512)
_NEAR = 0.03  # |x - y|^2 / (|x| |y|) of half of the pairs at least; beyond it the full product costs no more
_ROUNDING = 1e-5
_ROWS = 64


@dataclass(frozen=True)
class SiblingUnits:
    """What `match_sibling_units` proved.

    Args:
        columns: `[F]`; unit i belongs to unit `columns[i]` of the other expert.
        margins: `[F]`, at least so much, relative to `|x_i| |y_p(i)|`, does unit i lose with any other partner.
    """

    columns: Int[Tensor, " F"]
    margins: Float[Tensor, " F"]


def match_sibling_units(
    kept: tuple[Float[Tensor, "F d"], Float[Tensor, "F d"]],
    signed: tuple[Float[Tensor, "F s"], Float[Tensor, "F s"]] | None,
) -> SiblingUnits | None:
    """The assignment of least total squared distance if it shows at once, else None.

    With x_i = (kept, signed) a unit of one expert and y_j of the other, a part of the kept coordinates a_i, b_j and
    the norms of all others, `S_ij <= U_ij = <a_i, b_j> + |x_i rest| |y_j rest|` for either sign (Cauchy-Schwarz). If
    every unit has a partner of its own with `S_ip(i) - |y_p(i)|^2 / 2 >= U_ij - |y_j|^2 / 2` for all others j, no
    assignment is better: the prices `|y_j|^2 / 2` turn similarities into distances, and every row has its best.
    """
    a, b = kept
    x2, y2 = (part.square().sum(dim=1) for part in kept)
    if signed is not None:
        x2, y2 = x2 + signed[0].square().sum(dim=1), y2 + signed[1].square().sum(dim=1)
    prices, scale = y2 / 2, x2.sqrt() * y2.max().sqrt()
    strongest = a.square().sum(dim=0).argsort(descending=True)
    columns = torch.full_like(x2, -1, dtype=torch.long)
    own, margins = torch.full_like(x2, -torch.inf), torch.full_like(x2, -torch.inf)
    for count in _COORDINATES:
        rows = torch.nonzero(margins < _ROUNDING)[:, 0]
        chosen = strongest[:count]
        left, right = _bounding(a[rows][:, chosen], x2[rows]), _bounding(b[:, chosen], y2)
        best, runner_up = _two_best(torch.cat([left, torch.ones_like(left[:, :1])], 1), torch.cat([right, -prices[:, None]], 1))
        new = best != columns[rows]
        columns[rows[new]] = best[new]
        own[rows[new]] = _similarities(kept, signed, rows[new], best[new]) - prices[best[new]]
        margins[rows] = (own[rows] - runner_up) / scale[rows]
        distances = x2 - 2 * own  # |x|^2 - 2 S + |y|^2
        if (distances / scale).median() > _NEAR:
            return None
        if (margins > _ROUNDING).all():
            distinct = len(columns.unique()) == len(columns)
            return SiblingUnits(columns, margins) if distinct else None
    return None


def _bounding(part: Float[Tensor, "m k"], squares: Float[Tensor, " m"]) -> Float[Tensor, "m l"]:
    """`part` and the norm of all that is left out of it."""
    rest = (squares - part.square().sum(dim=1)).clamp(min=0).sqrt()
    return torch.cat([part, rest[:, None]], dim=1)


def _two_best(left: Float[Tensor, "m k"], right: Float[Tensor, "n k"]) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
    """The column of the largest entry of every row of `left right^T`, and the second largest entry; in blocks."""
    columns, seconds = [], []
    for rows in left.split(_ROWS):
        products = rows @ right.T
        if products.device.type == "cpu":  # numpy's argmax is vectorised; torch's takes four times as long
            best = torch.from_numpy(np.argmax(products.numpy(), axis=1))
        else:
            best = products.argmax(dim=1)
        products.scatter_(1, best[:, None], -torch.inf)
        columns.append(best)
        seconds.append(products.amax(dim=1))
    return torch.cat(columns), torch.cat(seconds)


def _similarities(kept, signed, rows: Tensor, columns: Tensor) -> Float[Tensor, " m"]:
    found = (kept[0][rows] * kept[1][columns]).sum(dim=1)
    if signed is not None:
        found += (signed[0][rows] * signed[1][columns]).sum(dim=1).abs()
    return found
