"""Matching the units of experts that stand in the same slot (step 2 of arXiv:2509.11348)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.symmetry import Permutation, SignedPermutation

from .assignment import certify, solve_assignment
from .dual_prices import proving_prices, row_margins
from .unit_bounds import match_sibling_units
from .units import Partners, Units

_SIBLINGS_FROM = 128


@dataclass(frozen=True)
class UnitMatching:
    """The units of one expert matched to those of another.

    Args:
        units: the signed permutation of the other expert's units, `[F]`.
        similarity: `sum_i S_ip(i)`, the greatest that any move reaches.
        squared_distance: between the units once aligned.
        gap: upper limit of how much the greatest similarity exceeds this one; 0 but for rounding.
        solver: "siblings" where a few coordinates proved the optimum, "fixed" where units have no order of their own,
            else that of the `Assignment`.
        margins: `[F]`, lower bound of what unit i loses with any other partner, relative to `|x_i|^2`; 0 at a tie.
        fixed: the share of the reference's squared weights whose units keep their place and sign.
        random_squared_distance: the mean of `squared_distance` over all moves of units, free signs included.
    """

    units: SignedPermutation
    similarity: float
    squared_distance: float
    gap: float
    solver: str
    margins: Float[Tensor, " F"]
    fixed: float
    random_squared_distance: float


def match_units(reference: Units, other: Units) -> UnitMatching:
    """The exact matching of one expert's units to another's, with its evidence.

    One hidden layer between a fixed input and output basis makes it a single assignment on `Units.similarity`, in the
    paper's letters A A'^T + B^T B' + u u'^T.

    Near siblings are proven from a few coordinates (`match_sibling_units`); else the full product is solved. Units that
    are as well off in their own places stay there.
    """
    siblings = match_sibling_units(reference, other) if len(reference.kept) >= _SIBLINGS_FROM else None
    if siblings is not None:
        (partners, margins), gap, solver = siblings, 0.0, "siblings"
    else:
        similarity = reference.similarity(other)
        assignment = solve_assignment(similarity)
        columns, prices = assignment.columns, assignment.prices
        if prices is None:
            prices = torch.from_numpy(proving_prices(similarity.cpu().numpy(), columns.numpy()))
        gap, solver = certify(assignment._replace(prices=prices), similarity), assignment.solver
        if assignment.objective - similarity.diagonal().sum(dtype=torch.float64) <= _rounding(similarity):
            columns = torch.arange(len(columns))
        columns = columns.to(similarity.device)
        partners = Partners.of(reference, other, columns)
        margins = row_margins(similarity, columns, prices.to(similarity))
    return _matching(reference, other, partners, gap, solver, margins)


def keep_units(reference: Units, other: Units, order: Permutation | None = None) -> UnitMatching:
    """Units without an order of their own in a given one, `[F]`, or in their places."""
    margins = torch.zeros_like(reference.squares)
    columns = torch.arange(len(margins)) if order is None else order.index
    partners = Partners.of(reference, other, columns.to(margins.device))
    return _matching(reference, other, partners, 0.0, "fixed", margins)


def stacked(matchings: list[UnitMatching]) -> SignedPermutation:
    """The unit permutations of all experts, `[E, F]`."""
    index = torch.stack([one.units.permutation.index for one in matchings])
    return SignedPermutation(Permutation(index), torch.stack([one.units.signs for one in matchings]))


def _rounding(similarity: Float[Tensor, "F F"]) -> float:
    """The error of a sum of F entries."""
    return torch.finfo(similarity.dtype).eps * similarity.abs().amax(dim=1).sum(dtype=torch.float64).item()


def _matching(
    reference: Units, other: Units, partners: Partners, gap: float, solver: str, margins: Float[Tensor, " F"]
) -> UnitMatching:
    squares, total = reference.squares, reference.squares.sum(dtype=torch.float64)
    stay = (partners.columns == torch.arange(len(squares), device=squares.device)) & (partners.signs > 0)
    means = reference.kept.sum(dim=0) @ other.kept.sum(dim=0) / len(squares)
    return UnitMatching(
        SignedPermutation(Permutation(partners.columns.cpu()), partners.signs.cpu()),
        partners.similarities.double().sum().item(),
        partners.squared_distance,
        gap,
        solver,
        (margins.clamp(min=0) / squares.clamp(min=torch.finfo(squares.dtype).tiny)).cpu(),
        (squares[stay].sum(dtype=torch.float64) / total).item() if total > 0 else 1.0,
        (total + other.squares.sum(dtype=torch.float64) - 2 * means).item(),
    )
