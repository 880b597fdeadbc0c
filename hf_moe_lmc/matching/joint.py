"""The exact expert order: bounds on all pairs of experts, and unit matchings only where the proof needs them."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from hf_moe_lmc.moe import MoeLayer
from hf_moe_lmc.symmetry import Permutation

from .assignment import solve_assignment
from .distance import working_dtype
from .unit_bounds import bounding_rows, total_similarity_bound
from .unit_matching import UnitMatching, match_experts_units
from .units import Units

_COORDINATES = 32


@dataclass
class JointTable:
    """`T_ij = max over unit moves of <expert i of reference, expert j of other>`, router rows included, or bounds.

    The layer's squared distance under the expert order sigma and the best units is a constant minus
    `2 sum_i T[i, sigma(i)]`, so one assignment on T finds the optimum over the whole group.

    Args:
        reference, other: layers in the gauge of `MoeLayer.in_gauge`.
        fixed: the part of T that no unit move changes: router rows and down_bias.
        values: T where `pairs` has the entry, upper bounds elsewhere.
        pairs: the unit matchings solved so far.
    """

    reference: MoeLayer
    other: MoeLayer
    fixed: Float64[Tensor, "E E"]
    values: Float64[Tensor, "E E"]
    pairs: dict[tuple[int, int], UnitMatching] = field(default_factory=dict)

    @classmethod
    def bounded(cls, reference: MoeLayer, other: MoeLayer) -> "JointTable":
        """All entries as upper bounds: every unit takes the best partner that a few coordinates allow."""
        dtype = working_dtype(reference, other)
        fixed = torch.zeros(reference.experts.num_experts, other.experts.num_experts, dtype=torch.float64)
        if reference.router is not None and other.router is not None:
            fixed += (reference.router.rows() @ other.router.rows().T).double().cpu()
        a, b = reference.experts.down_bias, other.experts.down_bias
        if a is not None and b is not None:
            fixed += (a.to(dtype) @ b.to(dtype).T).double().cpu()
        return cls(reference, other, fixed, fixed + _unit_bounds(reference, other, dtype))

    def solve(self, i: int, j: int) -> None:
        """Replace the bound of a pair by its exact value."""
        self.pairs[i, j] = matching = match_experts_units(self.reference, self.other, i, j)
        self.values[i, j] = self.fixed[i, j] + matching.similarity


def fill_until_certified(table: JointTable, first: Permutation, groups: int, budget: int) -> bool:
    """Solve pairs until the best order on `table` has exact values only: no bound elsewhere can exceed it.

    Args:
        table: gets the pairs of `first` and then, again and again, those of the best order on values and bounds.
        first: an order to begin with; the nearer to the optimum, the fewer pairs.
        groups: see `SymmetryGroup.expert_groups`.
        budget: at most so many pairs.

    Returns:
        whether the optimum is certified; False where the budget ran out.
    """
    order = first
    while wanted := [pair for pair in enumerate(order.index.tolist()) if pair not in table.pairs]:
        if len(table.pairs) + len(wanted) > budget:
            return False
        for pair in wanted:
            table.solve(*pair)
        order = solve_assignment(table.values, groups).permutation
    return True


def best_known_order(table: JointTable, groups: int) -> Permutation:
    """The best order among those whose pairs are all solved; the optimum if it is certified."""
    values = table.values
    unsolved = torch.ones_like(values, dtype=torch.bool)
    for pair in table.pairs:
        unsolved[pair] = False
    worst = values.min() - len(values) * (values.max() - values.min()) - 1
    return solve_assignment(values.masked_fill(unsolved, worst), groups).permutation


def _unit_bounds(reference: MoeLayer, other: MoeLayer, dtype: torch.dtype) -> Float64[Tensor, "E E"]:
    """`total_similarity_bound` of every pair of experts."""
    signs, slots = reference.group.unit_signs, range(reference.experts.num_experts)
    coordinates = Units.of(reference.experts, 0, signs, dtype).strongest(_COORDINATES)

    def bounding(layer: MoeLayer, e: int) -> Tensor:
        units = Units.of(layer.experts, e, signs, dtype)
        return bounding_rows(units.kept[:, coordinates], units.squares)

    right = [bounding(other, e) for e in slots]
    bounds = [[total_similarity_bound(left, one) for one in right] for left in (bounding(reference, e) for e in slots)]
    return torch.tensor(bounds, dtype=torch.float64)
