"""More than two layers, brought close to one another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from hf_moe_lmc.moe import MoeLayer, act
from hf_moe_lmc.symmetry import MoeSymmetry

from .distance import layer_distance, working_dtype
from .expert_order import ExpertOrder
from .layer_alignment import match_layers

_ROUNDS = 20
_GAIN = 1e-6  # less is rounding


@dataclass(frozen=True)
class MutualMatching:
    """Layers brought close to one another.

    Args:
        symmetries: one per layer, that of the first the identity. Layer i comes to layer j by
            `symmetries[j].inverse() @ symmetries[i]`, so going round any cycle changes nothing.
        start_distance: root of the total squared distance of all pairs under the initial symmetries.
        distance: the same under `symmetries`; never more.
    """

    symmetries: list[MoeSymmetry]
    start_distance: float
    distance: float


def match_mutually(
    layers: Sequence[MoeLayer], start: Sequence[MoeSymmetry], expert_order: ExpertOrder, balance_scales: bool = False
) -> MutualMatching:
    """The symmetries g_i that make `sum_{i < j} |g_i . L_i - g_j . L_j|^2` small: no g_i alone can be bettered.

    The sum depends on one g_i by its distance to the mean of the other layers alone, so each step is a matching of two
    layers. It is block-coordinate Frank-Wolfe on the objective of C2M3 (arXiv:2405.17897), over expert order and units:
    linear in every block, so the line search ends at the assignment itself. A step that gains nothing is not taken.

    Args:
        layers: comparable layers, two or more.
        start: the initial symmetries, one per layer.
        expert_order: see `match_experts`; with "joint" every step is exact.
        balance_scales: see `align_layers`; both distances are then those of balanced layers.
    """
    if balance_scales:
        layers = [layer.to(working_dtype(layer, layer)).balanced() for layer in layers]
    symmetries = list(start)
    aligned = [act(symmetry, layer) for symmetry, layer in zip(symmetries, layers, strict=True)]
    start_distance = _total_distance(aligned)
    for _ in range(_ROUNDS):
        before = list(symmetries)
        for k, layer in enumerate(layers):
            mean = _mean([other for i, other in enumerate(aligned) if i != k])
            symmetry = match_layers(mean, layer, expert_order)[0]
            candidate = act(symmetry, layer)
            if layer_distance(mean, candidate) < (1 - _GAIN) * layer_distance(mean, aligned[k]):
                symmetries[k], aligned[k] = symmetry, candidate
        if symmetries == before:
            break
    undo = symmetries[0].inverse()
    return MutualMatching([undo @ symmetry for symmetry in symmetries], start_distance, _total_distance(aligned))


def _total_distance(layers: Sequence[MoeLayer]) -> float:
    return math.hypot(*(layer_distance(a, b) for a, b in combinations(layers, 2)))


def _mean(layers: Sequence[MoeLayer]) -> MoeLayer:
    """The mean of all tensors, in float32 or better."""
    dtype = working_dtype(layers[0], layers[-1])
    tensors = [layer.tensors() for layer in layers]
    return layers[0].with_tensors(
        {
            name: sum((own[name].to(dtype) for own in tensors[1:]), first.to(dtype)) / len(layers)
            for name, first in tensors[0].items()
        }
    )
