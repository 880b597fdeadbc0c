"""More than two layers, brought close to one another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch

from hf_moe_lmc.moe import MoeLayer, act
from hf_moe_lmc.names import ExpertOrder
from hf_moe_lmc.symmetry import MoeSymmetry

from .distance import GaugedLayer, layer_distance, working_dtype
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
    layers: Sequence[MoeLayer], start: Sequence[MoeSymmetry], expert_order: ExpertOrder
) -> MutualMatching:
    """The symmetries g_i that make `sum_{i < j} |g_i . L_i - g_j . L_j|^2` small: no g_i alone can be bettered.

    The sum depends on one g_i by its distance to the mean of the other layers alone, so each step is a matching of two
    layers. It is block-coordinate Frank-Wolfe on the objective of C2M3 (arXiv:2405.17897), over expert order and units:
    linear in every block, so the line search ends at the assignment itself. A step that gains nothing is not taken.

    All layers are brought into their gauge first, in float32 or better.

    Args:
        layers: comparable layers, two or more.
        start: the initial symmetries, one per layer.
        expert_order: see `match_experts`; with "joint" every step is exact.
    """
    layers = [_settled(layer) for layer in layers]
    symmetries = list(start)
    aligned = [act(symmetry, layer) for symmetry, layer in zip(symmetries, layers, strict=True)]
    start_distance = _total_distance(aligned)
    for _ in range(_ROUNDS):
        before = list(symmetries)
        for k, layer in enumerate(layers):
            mean = _mean([other for i, other in enumerate(aligned) if i != k])
            symmetry = match_layers(*GaugedLayer.pair(mean, layer), expert_order)[0]
            candidate = act(symmetry, layer)
            if layer_distance(mean, candidate) < (1 - _GAIN) * layer_distance(mean, aligned[k]):
                symmetries[k], aligned[k] = symmetry, candidate
        if symmetries == before:
            break
    undo = symmetries[0].inverse()
    return MutualMatching([undo @ symmetry for symmetry in symmetries], start_distance, _total_distance(aligned))


def _settled(layer: MoeLayer) -> MoeLayer:
    """The layer in its gauge, which is no longer free: the mean of such layers keeps the scales that it has."""
    group = replace(
        layer.group, unit_scale_degree=0, shared_unit_scale_degree=0, router_scale=False, expert_output_scale=False
    )
    return replace(layer.to(working_dtype(layer)).in_gauge(), group=group)


def _total_distance(layers: Sequence[MoeLayer]) -> float:
    return math.hypot(*(layer_distance(a, b) for a, b in combinations(layers, 2)))


def _mean(layers: Sequence[MoeLayer]) -> MoeLayer:
    """The mean of all tensors."""
    tensors = [layer.tensors() for layer in layers]
    return layers[0].with_tensors(
        {name: torch.stack([own[name] for own in tensors]).mean(dim=0) for name in tensors[0]}
    )
