"""The expert order: which expert of the other model belongs to which expert of the reference."""

import math
from dataclasses import dataclass, field, replace
from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.errors import UnsupportedArchitectureError
from hf_moe_lmc.moe import Router
from hf_moe_lmc.names import ExpertOrder
from hf_moe_lmc.symmetry import Permutation

from .assignment import solve_assignment
from .distance import GaugedLayer, fixed_squared_distance
from .gram import gram_cost, sketched_squares
from .joint import JointTable, fill_until_certified, settled_order
from .unit_matching import UnitMatching, keep_units

_AUTO_BUDGET = 4  # unit assignments per expert
_CLEAR = 2.0
_NEAR = 0.1
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ExpertMatching:
    """An order of the other layer's experts, and its evidence.

    Args:
        order: `[E]`.
        method: the route that decided: "none", "units", "gate", "gram", "joint" or "given".
        certified: whether it is proven to be the optimum of the squared distance over all orders and units.
        margin: loss of the second best order on the method's table, as a fraction of what exchanging two
            experts costs on average; 1 is clear, 0 a tie. At least so much where the table holds bounds.
        gate_agreement: the share of the experts whose partners are also those of the best order by router rows; None
            without routers.
        table: `[E, E]`, the scores that the method compared, the greater the better; upper bounds where "joint" needed
            no more. None where experts were not compared.
        pairs: the pairs of experts whose units were matched on the way.
    """

    order: Permutation
    method: str
    certified: bool = False
    margin: float = 0.0
    gate_agreement: float | None = None
    table: Float[Tensor, "E E"] | None = None
    pairs: dict[tuple[int, int], UnitMatching] = field(default_factory=dict)


def match_experts(reference: GaugedLayer, other: GaugedLayer, method: ExpertOrder) -> ExpertMatching:
    """The order of `other`'s experts that fits `reference`'s best; of equal ones, one that leaves more in their places.

    Args:
        reference, other: comparable layers.
        method: "units" keeps the order as it is (only units will be matched), as do all where experts are fixed, and
            "none"; "gate" compares router rows; "gram" compares the experts' Gram matrices, which do not depend on the
            order of units; "joint" is the exact optimum of the squared distance over experts and units, and matches the
            units of as many of the E^2 pairs as its proof needs; "auto" is "joint" with at most 4 E pairs and, where
            these prove nothing, the best by distance of all orders that they show, the present one and those of router
            rows, Gram matrices and their random sketch among them.

    Product keys: "gate" is exact for the keys; "gram" compares all experts of one first key; the optimum over keys and
    experts is a quadratic assignment, so "auto" is the nearest of the present order, "gate" and "gram".

    Raises:
        UnsupportedArchitectureError: "joint" for product keys.
    """
    stay = Permutation.identity(reference.layer.experts.num_experts)
    router, other_router, group = reference.router, other.router, reference.layer.group
    if method == "none" or group.fixed_experts or router is None or other_router is None:
        return ExpertMatching(stay, "none" if method == "none" else "units")
    if group.product_keys and method == "joint":
        raise UnsupportedArchitectureError(
            'the "joint" order of product keys is a quadratic assignment; choose "gate" or "gram"'
        )
    groups, gate = group.expert_groups, _on_table(-gate_cost(router, other_router), group.expert_groups, "gate")
    match method:
        case "units":
            matching = ExpertMatching(stay, "units")
        case "gate":
            matching = gate
        case "gram":
            matching = _by_gram(reference, other, groups)
        case "auto" if group.product_keys:
            matching = _nearest(
                reference, other, [ExpertMatching(stay, "units"), gate, _by_gram(reference, other, groups)]
            )
        case "joint" | "auto":
            matching = _jointly(reference, other, gate, groups, exact=method == "joint")
        case _:
            assert_never(method)
    agreement = (matching.order.index == gate.order.index).double().mean().item()
    return replace(matching, gate_agreement=agreement)


def gate_cost(reference: Router, other: Router) -> Float[Tensor, "E E"]:
    """`C_ij = (|W_i - W'_j|^2 + (b_i - b'_j)^2)^(1/2)`, selection biases and scales as further columns.

    Both routers in the gauge of `MoeLayer.in_gauge`. Source: arXiv:2509.11348, equation 10.
    """
    # The default mode of cdist cancels catastrophically for nearly equal rows.
    return torch.cdist(reference.rows(), other.rows(), compute_mode="donot_use_mm_for_euclid_dist")


def order_margin(table: Float[Tensor, "E E"], order: Permutation, groups: int) -> float:
    """Loss of the second best order on `table`, as a fraction of the mean loss of exchanging two experts.

    Exactly: the second best avoids one of the best one's pairs, so the best without each of them is solved.
    """
    size = len(table)
    if size == 1:
        return 1.0
    rows = torch.arange(size)
    values = table.double().cpu()
    best = values[rows, order.index].sum().item()
    exchange = 2 * (best / size - values.mean().item())
    forbidden = values.min() - size * (values.max() - values.min()) - 1
    others = []
    for i in range(size):
        without = values.clone()
        without[i, order.index[i]] = forbidden
        second = solve_assignment(without, groups).permutation.index
        if second[i] != order.index[i]:
            others.append(values[rows, second].sum().item())
    return max(best - max(others), 0.0) / exchange if others and exchange > 0 else 0.0


def _on_table(table: Float[Tensor, "E E"], groups: int, method: str) -> ExpertMatching:
    order = settled_order(table, groups)
    return ExpertMatching(order, method, margin=order_margin(table, order, groups), table=table)


def _by_gram(reference: GaugedLayer, other: GaugedLayer, groups: int) -> ExpertMatching:
    return _on_table(-gram_cost(reference, other), groups, "gram")


def _jointly(
    reference: GaugedLayer, other: GaugedLayer, gate: ExpertMatching, groups: int, exact: bool
) -> ExpertMatching:
    """The order of least distance, proven to be it or the best of all that were looked at."""
    stay, table = Permutation.identity(len(gate.order.index)), JointTable.of(reference, other)
    pairs = stay.size * (stay.size if exact else _AUTO_BUDGET)
    first = _likely_order(reference, other, gate, groups)
    certified = fill_until_certified(table, first, groups, pairs if exact else pairs // 2)
    if not certified:
        for order in (
            stay,
            gate.order,
            _sketched_order(reference, other, groups),
            _by_gram(reference, other, groups).order,
        ):
            if table.squared_distance(order) < table.squared_distance(table.best_order(groups, solved=True)):
                table.solve(order)
        certified = fill_until_certified(table, table.best_order(groups, solved=True), groups, pairs)
    order = table.best_order(groups, solved=True)
    enough = (1 + _ROUNDING) * table.squared_distance(order)
    if table.squared_distance(stay) <= enough:
        table.solve(stay)
        order = stay if table.squared_distance(stay) <= enough else order
    if order == gate.order and not exact:
        return replace(gate, certified=certified, pairs=table.pairs)
    margin = order_margin(-table.costs, order, groups)
    return ExpertMatching(order, "joint", certified, margin, table=-table.costs, pairs=table.pairs)


def _likely_order(reference: GaugedLayer, other: GaugedLayer, gate: ExpertMatching, groups: int) -> Permutation:
    """An order to begin with: by router rows where they are clear, the present one of siblings, else by a sketch."""
    if gate.table is not None and _is_clear(-gate.table, gate.order):
        return gate.order
    a, b = reference.units(0), other.units(0)
    if keep_units(a, b).squared_distance < _NEAR * (a.squares.sum() + b.squares.sum()).item():
        return Permutation.identity(len(gate.order.index))
    return _sketched_order(reference, other, groups)


def _sketched_order(reference: GaugedLayer, other: GaugedLayer, groups: int) -> Permutation:
    return settled_order(-sketched_squares(reference, other).mean(dim=0).sqrt(), groups)


def _nearest(reference: GaugedLayer, other: GaugedLayer, matchings: list[ExpertMatching]) -> ExpertMatching:
    """The first of the orders of product keys that are no farther than any other."""

    def squared_distance(order: Permutation) -> float:
        pairs = enumerate(order.index.tolist())
        units = (keep_units(reference.units(i), other.units(j), order).squared_distance for i, j in pairs)
        return fixed_squared_distance(reference, other, order) + math.fsum(units)

    distances = [squared_distance(matching.order) for matching in matchings]
    enough = (1 + _ROUNDING) * min(distances)
    return next(matching for matching, distance in zip(matchings, distances, strict=True) if distance <= enough)


def _is_clear(cost: Float[Tensor, "E E"], order: Permutation) -> bool:
    """Whether every router row is at least twice as near to its partner as to any other, and equal to no other."""
    rows, columns = torch.arange(len(cost), device=cost.device), order.index.to(cost.device)
    own, others = cost[rows, columns], cost.clone()
    others[rows, columns] = torch.inf
    nearest = torch.minimum(others.amin(dim=1), others.amin(dim=0)[columns])
    return bool(((_CLEAR * own <= nearest) & (nearest > 0)).all())
