"""Matching the units of siblings: the optimum is proven from a few coordinates, without the similarity of all pairs.

Two units that are not partners differ in any few coordinates by more than partners differ in all of them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from .bounds import bounding_rows
from .units import Units

_COORDINATES = (32, 128, 512)
_NEAR = 0.03  # median of |x - y|^2 / |x|^2; farther apart, the bounds tell too little
_ROUNDING = 1e-5
_ROWS = 64


@dataclass(frozen=True)
class SiblingUnits:
    """What `match_sibling_units` proved.

    Args:
        columns: `[F]`; unit i belongs to unit `columns[i]` of the other expert.
        moved: the other's units, in the order `columns`.
        similarities: `[F]`, `S_ip(i)`.
        signs: `[F]`, those that reach it.
        margins: `[F]`; unit i loses at least so much with any other partner.
    """

    columns: Int[Tensor, " F"]
    moved: Units
    similarities: Float[Tensor, " F"]
    signs: Int8[Tensor, " F"]
    margins: Float[Tensor, " F"]


def match_sibling_units(reference: Units, other: Units) -> SiblingUnits | None:
    """The assignment of greatest total similarity if it shows at once, else None.

    Every unit has a partner p(i) of its own with `S_ip(i) - v_p(i) >= U_ij - v_j` for all others j, where U bounds S
    from above (`bounding_rows`) and the prices `v_j = |y_j|^2 / 2` turn similarities into distances: then every
    row has its best, and no assignment is better. More coordinates are looked at for the units that it does not
    settle, fewer than the full product needs.
    """
    squares, other_squares = reference.squares, other.squares
    prices, rounding = other_squares / 2, _ROUNDING * (squares * other_squares.max()).sqrt()
    strongest = reference.strongest(max(_COORDINATES))
    rows = torch.arange(len(squares), device=squares.device)
    columns, margins = torch.full_like(rows, -1), torch.empty_like(squares)
    for count in _COORDINATES:
        coordinates = strongest[:count]
        left = bounding_rows(reference.kept[:, coordinates], squares)[rows]
        best, second = _two_best(left, bounding_rows(other.kept[:, coordinates], other_squares), prices)
        if not torch.equal(columns[rows], best):
            columns[rows] = best
            moved = other.at(columns)
            similarities, signs = reference.paired(moved)
        margins[rows] = (similarities - prices[columns])[rows] - second
        distances = squares - 2 * similarities + other_squares[columns]
        if distances.median() > _NEAR * squares.median():
            return None
        rows = torch.nonzero(margins <= rounding)[:, 0]
        if not len(rows):
            distinct = len(columns.unique()) == len(columns)
            return SiblingUnits(columns, moved, similarities, signs, margins) if distinct else None
    return None


def _two_best(
    left: Float[Tensor, "m k"], right: Float[Tensor, "n k"], prices: Float[Tensor, " n"]
) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
    """Column of the largest entry of every row of `left right^T - prices`, and the second largest entry; in blocks."""
    left = torch.cat([left, torch.ones_like(left[:, :1])], dim=1)
    right = torch.cat([right, -prices[:, None]], dim=1).T
    columns, seconds = [], []
    for rows in left.split(_ROWS):
        products = rows @ right
        if products.device.type == "cpu":  # numpy's argmax is vectorised; torch's takes four times as long
            best = torch.from_numpy(np.argmax(products.numpy(), axis=1))
        else:
            best = products.argmax(dim=1)
        products.scatter_(1, best[:, None], -torch.inf)
        columns.append(best)
        seconds.append(products.amax(dim=1))
    return torch.cat(columns), torch.cat(seconds)
