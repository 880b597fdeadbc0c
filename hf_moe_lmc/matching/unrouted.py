"""Experts that no router chooses among: the orders of shared experts and of zero experts, exactly."""

from itertools import product

import torch
from jaxtyping import Float64
from torch import Tensor

from hf_moe_lmc.symmetry import Permutation
from hf_moe_lmc.workers import each

from .distance import GaugedLayer
from .joint import settled_order, squared_distances
from .unit_matching import UnitMatching, match_units


def match_shared_experts(
    reference: GaugedLayer, other: GaugedLayer, keep_order: bool = False
) -> tuple[Permutation | None, list[UnitMatching]]:
    """The order of the shared experts and the units of every pair: the optimum of the squared distance; None without.

    Router rows of their own count, and move with them. Of equal orders, one that leaves more in their places.
    """
    a, b = reference.shared_units(), other.shared_units()
    if not a:
        return None, []
    order = Permutation.identity(len(a))
    pairs = [*enumerate(range(len(a)))] if keep_order else [*product(range(len(a)), repeat=2)]
    matchings = dict(zip(pairs, each(lambda pair: match_units(a[pair[0]], b[pair[1]]), pairs), strict=True))
    if not keep_order and len(a) > 1:
        costs = torch.tensor([matchings[pair].squared_distance for pair in pairs], dtype=torch.float64)
        of_rows = _of_rows(reference, other, "shared experts")
        biases = reference.shared_down_bias, other.shared_down_bias
        costs = costs.view(len(a), len(a)) + (0 if of_rows is None else of_rows)
        if biases[0] is not None and biases[1] is not None:
            costs = costs + squared_distances(biases[0], biases[1])
        order = settled_order(-costs, 1)
    return order, [matchings[pair] for pair in enumerate(order.index.tolist())]


def match_zero_experts(reference: GaugedLayer, other: GaugedLayer, keep_order: bool = False) -> Permutation | None:
    """The order of the zero experts whose router rows are nearest; None without."""
    costs = _of_rows(reference, other, "zero experts")
    if costs is None:
        return None
    return Permutation.identity(len(costs)) if keep_order else settled_order(-costs, 1)


def _of_rows(reference: GaugedLayer, other: GaugedLayer, owner: str) -> Float64[Tensor, "R R"] | None:
    """The squared distances of the router's further rows, if they are the owner's."""
    a, b = reference.further_rows, other.further_rows
    return None if a is None or b is None or reference.layer.group.further_rows != owner else squared_distances(a, b)
