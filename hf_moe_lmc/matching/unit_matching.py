"""Matching the units of experts that stand in the same slot (step 2 of arXiv:2509.11348)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import MoeLayer
from hf_moe_lmc.symmetry import Permutation, SignedPermutation

from .assignment import certify, solve_assignment
from .distance import working_dtype
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
    """

    units: SignedPermutation
    similarity: float
    squared_distance: float
    gap: float
    solver: str
    margins: Float[Tensor, " F"]


def match_pair(reference: Units, other: Units) -> UnitMatching:
    """The exact matching of one expert's units to another's, with its evidence.

    One hidden layer between a fixed input and output basis makes it a single assignment on `Units.similarity`, in the
    paper's letters A A'^T + B^T B' + u u'^T.

    Near siblings are proven from a few coordinates (`match_sibling_units`); else the full product is solved.
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
        columns = columns.to(similarity.device)
        partners = Partners.of(reference, other, columns)
        margins = row_margins(similarity, columns, prices.to(similarity))
    return _matching(reference, partners, gap, solver, margins)


def match_experts_units(
    reference: MoeLayer, other: MoeLayer, i: int, j: int, keys: Permutation | None = None
) -> UnitMatching:
    """`match_pair` of routed expert i of one layer and j of the other; only these two are brought to float32.

    Units without an order of their own keep theirs, or follow the order of the `keys`.
    """
    dtype, group = working_dtype(reference, other), reference.group
    a, b = (Units.of(x.experts, e, group.unit_signs, dtype) for x, e in ((reference, i), (other, j)))
    if group.unit_order:
        return match_pair(a, b)
    margins = torch.zeros_like(a.kept[:, 0])
    order = torch.arange(len(margins)) if keys is None else keys.index
    return _matching(a, Partners.of(a, b, order.to(margins.device)), 0.0, "fixed", margins)


def match_shared_units(reference: MoeLayer, other: MoeLayer) -> list[UnitMatching]:
    """`match_pair` of every shared expert and its counterpart."""
    a, b = reference.shared_experts, other.shared_experts
    if a is None or b is None:
        return []
    dtype, signs = working_dtype(reference, other), reference.group.shared_unit_signs
    return [match_pair(*(Units.of(bank, e, signs, dtype) for bank in (a, b))) for e in range(a.num_experts)]


def stacked(matchings: list[UnitMatching]) -> SignedPermutation:
    """The unit permutations of all experts, `[E, F]`."""
    index = torch.stack([one.units.permutation.index for one in matchings])
    return SignedPermutation(Permutation(index), torch.stack([one.units.signs for one in matchings]))


def _matching(
    reference: Units, partners: Partners, gap: float, solver: str, margins: Float[Tensor, " F"]
) -> UnitMatching:
    squares = reference.squares
    return UnitMatching(
        SignedPermutation(Permutation(partners.columns.cpu()), partners.signs.cpu()),
        partners.similarities.double().sum().item(),
        partners.squared_distance,
        gap,
        solver,
        (margins.clamp(min=0) / squares.clamp(min=torch.finfo(squares.dtype).tiny)).cpu(),
    )
