"""The expert order: which expert of the other model belongs to which expert of the reference.

Each method fills an E x E table and solves one assignment on it.
"""

from dataclasses import dataclass, field, replace
from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.errors import UnsupportedArchitectureError
from hf_moe_lmc.moe import ExpertBank, MoeLayer, Router
from hf_moe_lmc.names import ExpertOrder
from hf_moe_lmc.symmetry import Permutation

from .assignment import solve_assignment
from .distance import gauged, working_dtype
from .gram import glimpsed_gram_cost, gram_cost, sketched_squares
from .joint import JointTable, best_known_order, fill_until_certified
from .unit_matching import UnitMatching

_AUTO_BUDGET = 4  # unit assignments per expert
_CLEAR = 2.0


@dataclass(frozen=True)
class ExpertMatching:
    """An order of the other layer's experts, and its evidence.

    Args:
        order: `[E]`.
        method: the route that decided: "units", "gate", "gram", "joint" or "given".
        certified: whether it is proven to be the optimum of the squared distance over all orders and units.
        margin: loss of the second best order on the method's table, as a fraction of what exchanging two
            experts costs on average; 1 is clear, 0 a tie. At least so much where the table holds bounds.
        gate_agreement: the share of the experts whose partners are also those of the best order by router rows; None
            without routers.
        gram_agreement: the same by Gram matrices, of which 64 hidden coordinates are looked at; None without units.
        table: `[E, E]`, the scores that the method compared, the greater the better; upper bounds where "joint" needed
            no more. None where experts were not compared.
        pairs: the pairs of experts whose units were matched on the way.
    """

    order: Permutation
    method: str
    certified: bool = False
    margin: float = 0.0
    gate_agreement: float | None = None
    gram_agreement: float | None = None
    table: Float[Tensor, "E E"] | None = None
    pairs: dict[tuple[int, int], UnitMatching] = field(default_factory=dict)


def match_experts(reference: MoeLayer, other: MoeLayer, method: ExpertOrder) -> ExpertMatching:
    """The order of `other`'s experts that fits `reference`'s best.

    Args:
        reference, other: comparable layers.
        method: "units" keeps the order as it is (only units will be matched), as do all where experts are fixed;
            "gate" compares router rows; "gram" compares the experts' Gram matrices, which do not depend on the order
            of units;
            "joint" is the exact optimum of the squared distance over experts and units, and matches the units of as
            many of the E^2 pairs as its proof needs; "auto" is "gate" where every router row is at least twice as near
            to its partner as to any other, and otherwise "joint" with at most 4 E pairs: the best order that they show,
            beginning with that of a random sketch of the Gram matrices.

    Product keys: "gate" is exact for the keys; "gram" compares all experts of one first key; the optimum over keys and
    experts is a quadratic assignment, so "auto" is "gate". Of experts without units, "auto" and "joint" are "gate".

    Raises:
        UnsupportedArchitectureError: "joint" for product keys; "gram" without units.
    """
    num_experts, groups = reference.experts.num_experts, reference.group.expert_groups
    dtype = working_dtype(reference, other)
    reference, other = gauged(reference, dtype), gauged(other, dtype)
    router, other_router = reference.router, other.router
    if reference.group.fixed_experts or router is None or other_router is None:
        return ExpertMatching(Permutation.identity(num_experts), "units")
    if not reference.experts.num_units and method != "units":  # as of quantised experts, which nobody looks into
        if method == "gram":
            raise UnsupportedArchitectureError('the "gram" order needs units, which are quantised; choose "gate"')
        method = "gate"
    cost = gate_cost(router, other_router)
    gate = solve_assignment(-cost, groups).permutation
    match method:
        case "units":
            matching = ExpertMatching(Permutation.identity(num_experts), "units")
        case "gram":
            matching = _by_gram(reference.experts, other.experts, dtype, groups)
        case "joint" if reference.group.product_keys:
            raise UnsupportedArchitectureError(
                'the "joint" order of product keys is a quadratic assignment; choose "gate" or "gram"'
            )
        case "gate":
            matching = _on_table(-cost, groups, "gate")
        case "auto" if reference.group.product_keys or _is_clear(cost, gate):
            matching = _on_table(-cost, groups, "gate")
        case "joint" | "auto":
            budget = num_experts**2 if method == "joint" else _AUTO_BUDGET * num_experts
            first = gate if _is_clear(cost, gate) else _sketched_order(reference.experts, other.experts, dtype, groups)
            matching = _jointly(JointTable.bounded(reference, other), first, groups, budget)
        case _:
            assert_never(method)
    gram = None
    if reference.experts.num_units:
        gram = solve_assignment(-glimpsed_gram_cost(reference.experts, other.experts), groups).permutation
    return replace(
        matching,
        gate_agreement=_agreement(matching.order, gate),
        gram_agreement=None if gram is None else _agreement(matching.order, gram),
    )


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
    order = solve_assignment(table, groups).permutation
    return ExpertMatching(order, method, margin=order_margin(table, order, groups), table=table)


def _by_gram(reference: ExpertBank, other: ExpertBank, dtype: torch.dtype, groups: int) -> ExpertMatching:
    return _on_table(-gram_cost(reference, other, dtype), groups, "gram")


def _sketched_order(reference: ExpertBank, other: ExpertBank, dtype: torch.dtype, groups: int) -> Permutation:
    return solve_assignment(-sketched_squares(reference, other, dtype).mean(dim=0).sqrt(), groups).permutation


def _jointly(table: JointTable, gate: Permutation, groups: int, budget: int) -> ExpertMatching:
    certified = fill_until_certified(table, gate, groups, budget)
    order = best_known_order(table, groups)
    margin = order_margin(table.values, order, groups)
    return ExpertMatching(order, "joint", certified, margin, table=table.values, pairs=table.pairs)


def _agreement(order: Permutation, other: Permutation) -> float:
    return (order.index == other.index).double().mean().item()


def _is_clear(cost: Float[Tensor, "E E"], order: Permutation) -> bool:
    rows, columns = torch.arange(len(cost), device=cost.device), order.index.to(cost.device)
    own, others = cost[rows, columns], cost.clone()
    others[rows, columns] = torch.inf
    by_row, by_column = others.amin(dim=1), others.amin(dim=0)[columns]
    return bool((_CLEAR * own <= torch.minimum(by_row, by_column)).all())
