"""The exact expert order: lower bounds on all pairs of experts, and unit matchings only where the proof needs them."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from hf_moe_lmc.symmetry import Permutation
from hf_moe_lmc.workers import each

from .assignment import solve_assignment
from .distance import GaugedLayer
from .unit_bounds import bounding_rows, least_squared_distances
from .unit_matching import UnitMatching, keep_units, match_units
from .units import Units

_BOUNDED_UNITS = (16, 256, 1024)  # so many of the strongest units are looked at, one number after the other
_COORDINATES = 64
_TIE = 1e-9


@dataclass
class JointTable:
    """`C_ij = min over unit moves of |expert i of reference - expert j of other|^2`, router rows included, or bounds.

    The layer's squared distance under the expert order sigma and the best units is `sum_i C[i, sigma(i)]` (and that of
    shared experts), so one assignment on C finds the optimum over the whole group.

    Args:
        reference, other: the layers.
        fixed: the part of C that no unit move changes: router rows and down_bias.
        costs: C where `pairs` has the entry, lower bounds elsewhere.
        pairs: the unit matchings solved so far.
        bounded: how many of `_BOUNDED_UNITS` the bounds rest on.
    """

    reference: GaugedLayer
    other: GaugedLayer
    fixed: Float64[Tensor, "E E"]
    costs: Float64[Tensor, "E E"]
    pairs: dict[tuple[int, int], UnitMatching] = field(default_factory=dict)
    bounded: int = 0
    _left: dict[int, Float[Tensor, "_ l"]] = field(default_factory=dict)  # bounding rows of the strongest units
    _right: dict[int, Float[Tensor, "F l"]] = field(default_factory=dict)
    _coordinates: Int[Tensor, " k"] | None = None

    @classmethod
    def of(cls, reference: GaugedLayer, other: GaugedLayer) -> "JointTable":
        """The table with nothing but `fixed`."""
        fixed = sum(
            (squared_distances(a, b) for a, b in _rows_without_units(reference, other)),
            torch.zeros(1, 1, dtype=torch.float64).expand(*[reference.layer.experts.num_experts] * 2),
        )
        return cls(reference, other, fixed, fixed.clone())

    def missing(self, order: Permutation) -> list[tuple[int, int]]:
        """The pairs of an order that are not solved."""
        return [pair for pair in enumerate(order.index.tolist()) if pair not in self.pairs]

    def solve(self, order: Permutation) -> None:
        """Replace the bounds of all pairs of an order by their exact values."""
        missing = self.missing(order)
        if missing and self._coordinates is None:
            self._coordinates = self.reference.units(missing[0][0]).strongest(_COORDINATES)
        for (i, j), matching in zip(missing, each(self._match, missing), strict=True):
            self.pairs[i, j] = matching
            self.costs[i, j] = self.fixed[i, j] + matching.squared_distance

    def tighten(self) -> None:
        """Bounds from more units; each expert must have been in a solved pair."""
        count, self.bounded = _BOUNDED_UNITS[self.bounded], self.bounded + 1
        slots = range(len(self.costs))
        left = [self._left[e][:count] for e in slots]
        bounds = torch.stack(each(lambda e: least_squared_distances(left, self._right[e]), slots), dim=1).cpu()
        bounds = torch.maximum(self.costs, self.fixed + bounds)
        for i, j in self.pairs:
            bounds[i, j] = self.costs[i, j]
        self.costs = bounds

    def squared_distance(self, order: Permutation) -> float:
        """`sum_i C[i, order[i]]`, or its lower bound."""
        return self.costs[torch.arange(len(self.costs)), order.index].sum().item()

    def best_order(self, groups: int, solved: bool = False) -> Permutation:
        """The order of least `squared_distance`, among all or among those whose pairs are `solved`."""
        scores = -self.costs
        if solved:
            unsolved = torch.ones_like(scores, dtype=torch.bool)
            for pair in self.pairs:
                unsolved[pair] = False
            scores = scores.masked_fill(unsolved, scores.min().item() * (len(scores) + 1) - 1)
        return settled_order(scores, groups)

    def _match(self, pair: tuple[int, int]) -> UnitMatching:
        i, j = pair
        a, b = self.reference.units(i), self.other.units(j)
        self._keep_bounding_rows(i, a, j, b)
        return match_units(a, b) if self.reference.layer.group.unit_order else keep_units(a, b)

    def _keep_bounding_rows(self, i: int, a: Units, j: int, b: Units) -> None:
        if i not in self._left:
            strongest = a.squares.topk(min(max(_BOUNDED_UNITS), len(a.squares))).indices
            self._left[i] = bounding_rows(a.kept[strongest][:, self._coordinates], a.squares[strongest])
        if j not in self._right:
            self._right[j] = bounding_rows(b.kept[:, self._coordinates], b.squares)


def fill_until_certified(table: JointTable, first: Permutation, groups: int, budget: int) -> bool:
    """Solve pairs until the best order on `table` has exact values only: no bound elsewhere can be less.

    Args:
        table: gets the pairs of `first` and then, again and again, those of the best order on values and bounds.
        first: an order to begin with; the nearer to the optimum, the fewer pairs.
        groups: see `SymmetryGroup.expert_groups`.
        budget: at most so many pairs, beside those of `first`.

    Returns:
        whether the optimum is certified; False where the budget ran out.
    """
    table.solve(first)
    while table.bounded < len(_BOUNDED_UNITS) and (table.bounded == 0 or table.missing(table.best_order(groups))):
        table.tighten()
    while missing := table.missing(order := table.best_order(groups)):
        if len(table.pairs) + len(missing) > budget:
            return False
        table.solve(order)
    return True


def settled_order(scores: Float[Tensor, "E E"], groups: int) -> Permutation:
    """The order of greatest total score; of equal ones, one that leaves more experts in their places."""
    stay = torch.eye(len(scores), dtype=torch.float64) * _TIE * scores.abs().max().double().cpu()
    return solve_assignment(scores.double().cpu() + stay, groups).permutation


def _rows_without_units(reference: GaugedLayer, other: GaugedLayer) -> list[tuple[Tensor, Tensor]]:
    """Router rows and down_bias of both layers."""
    rows = [(reference.down_bias, other.down_bias)]
    if reference.router is not None and other.router is not None:
        rows.append((reference.router.rows(), other.router.rows()))
    return [(a, b) for a, b in rows if a is not None and b is not None]


def squared_distances(a: Float[Tensor, "m d"], b: Float[Tensor, "n d"]) -> Float64[Tensor, "m n"]:
    """`|a_i - b_j|^2` of all rows."""
    # The default mode of cdist cancels catastrophically for nearly equal rows.
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist").square().cpu()
