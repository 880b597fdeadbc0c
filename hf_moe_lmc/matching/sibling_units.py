"""Matching the units of siblings: the optimum is proven from a few coordinates, without the similarity of all pairs.

Two units that are not partners differ in any few coordinates by more than partners differ in all of them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

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
        margins: `[F]`; unit i loses at least so much with any other partner.
    """

    columns: Int[Tensor, " F"]
    margins: Float[Tensor, " F"]


def match_sibling_units(reference: Units, other: Units) -> SiblingUnits | None:
    """The assignment of greatest total similarity if it shows at once, else None.

    Every unit has a partner p(i) of its own with `S_ip(i) - v_p(i) >= U_ij - v_j` for all others j, where U bounds S
    from above (`similarity_bound`) and the prices `v_j = |y_j|^2 / 2` turn similarities into distances: then every
    row has its best, and no assignment is better. More coordinates are looked at for the units that it does not
    settle, fewer than the full product needs.
    """
    squares, other_squares = reference.squares, other.squares
    prices, scale = other_squares / 2, (squares * other_squares.max()).sqrt()
    strongest = reference.kept.square().sum(dim=0).argsort(descending=True)
    columns = torch.full_like(squares, -1, dtype=torch.long)
    gains, margins = torch.zeros_like(squares), torch.full_like(squares, -torch.inf)
    for count in _COORDINATES:
        rows = torch.nonzero(margins <= _ROUNDING * scale)[:, 0]
        left = bounding_rows(reference.kept[rows], squares[rows], strongest[:count])
        right = bounding_rows(other.kept, other_squares, strongest[:count])
        best, second = _two_best(left, right, prices)
        new = rows[best != columns[rows]]
        columns[rows] = best
        gains[new] = reference.at(new).paired(other.at(columns[new]))[0] - prices[columns[new]]
        margins[rows] = gains[rows] - second
        if (squares - 2 * gains).median() > _NEAR * squares.median():  # |x|^2 - 2 S + |y|^2
            return None
        if (margins > _ROUNDING * scale).all():
            return SiblingUnits(columns, margins) if len(columns.unique()) == len(columns) else None
    return None


def bounding_rows(
    kept: Float[Tensor, "m d"], squares: Float[Tensor, " m"], coordinates: Int[Tensor, " k"]
) -> Float[Tensor, "m l"]:
    """Rows z_i whose products bound similarities: `S_ij <= <z_i, w_j>`, for either sign.

    The chosen coordinates and the norm of all that they leave out: of the rest, Cauchy-Schwarz.

    Args:
        kept: the part of the units that no sign touches.
        squares: `|x_i|^2` of the whole units.
        coordinates: columns of `kept`.
    """
    part = kept[:, coordinates]
    rest = (squares - part.square().sum(dim=1)).clamp(min=0).sqrt()
    return torch.cat([part, rest[:, None]], dim=1)


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
