"""Proofs from a few coordinates of the units: lower bounds of distances, and the matching of siblings.

Siblings need no similarity of all pairs: two units that are not partners differ in any few coordinates by more than
partners differ in all of them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from .units import Partners, Units

_COORDINATES = (32, 128, 512)
_NEAR = 0.03  # median of |x - y|^2 / |x|^2; farther apart, the bounds tell too little
_ROUNDING = 1e-5
_ROWS = 64


def bounding_rows(part: Float[Tensor, "m k"], squares: Float[Tensor, " m"]) -> Float[Tensor, "m l"]:
    """Rows z_i that are no farther apart than the units: `|z_i - w_j| <= |x_i - s y_j|`, for either sign s.

    They are the chosen coordinates and the norm of all that these leave out, so `|z_i| = |x_i|`. By Cauchy-Schwarz,
    `S_ij <= <z_i, w_j>`.

    Args:
        part: some coordinates that no sign touches, the same for both experts.
        squares: `|x_i|^2` of the whole units.
    """
    rest = (squares - part.square().sum(dim=1)).clamp(min=0).sqrt()
    return torch.cat([part, rest[:, None]], dim=1)


def least_squared_distances(left: Sequence[Float[Tensor, "_ l"]], right: Float[Tensor, "n l"]) -> Float64[Tensor, " b"]:
    """Lower bounds of the squared distances of several experts to one, over all moves of units.

    `sum_i min_j |z_i - w_j|^2` of each: every unit takes the partner that is nearest in the chosen coordinates.

    Args:
        left: bounding rows of some or all units of every expert.
        right: bounding rows of all units of the one.
    """
    squares, bounds = right.square().sum(dim=1), []
    rounding = 8 * torch.finfo(right.dtype).eps
    for rows in torch.cat(list(left)).split(_ROWS):
        own = rows.square().sum(dim=1)
        nearest = torch.addmm(squares, rows, right.T, alpha=-2).amin(dim=1) + own
        bounds.append((nearest - rounding * (own + squares.max())).clamp(min=0))
    sums = torch.cat(bounds).double().split([len(rows) for rows in left])
    return torch.stack([part.sum() for part in sums])


def match_sibling_units(reference: Units, other: Units) -> tuple[Partners, Float[Tensor, " F"]] | None:
    """The assignment of greatest total similarity if it shows at once, else None.

    Every unit has a partner p(i) of its own with `S_ip(i) - v_p(i) >= U_ij - v_j` for all others j, where U bounds S
    from above (`bounding_rows`) and the prices `v_j = |y_j|^2 / 2` turn similarities into distances: then every row
    has its best, and no assignment is better. More coordinates are looked at for the units that it does not settle,
    fewer than the full product needs.

    Returns:
        the partners, and `[F]`, the least that unit i loses with any other.
    """
    squares, other_squares = reference.squares, other.squares
    prices, rounding = other_squares / 2, _ROUNDING * (squares * other_squares.max()).sqrt()
    strongest = reference.strongest(max(_COORDINATES))
    rows, partners, margins = torch.arange(len(squares), device=squares.device), None, torch.empty_like(squares)
    for count in _COORDINATES:
        coordinates = strongest[:count]
        left = bounding_rows(reference.kept[:, coordinates], squares)[rows]
        best, second = _two_best(left, bounding_rows(other.kept[:, coordinates], other_squares), prices)
        columns = best if partners is None else partners.columns.index_put((rows,), best)
        if partners is None or not torch.equal(columns, partners.columns):
            partners = Partners.of(reference, other, columns)
        margins[rows] = (partners.similarities - prices[columns])[rows] - second
        distances = squares - 2 * partners.similarities + other_squares[columns]
        if distances.median() > _NEAR * squares.median():
            return None
        rows = torch.nonzero(margins <= rounding)[:, 0]
        if not len(rows):
            return (partners, margins) if len(columns.unique()) == len(columns) else None
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
