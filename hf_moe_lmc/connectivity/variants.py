"""Paths between two models: to the other one as it is, aligned and rewritten, and controls that average no experts."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.alignment import Alignment, AlignmentConfig, CheckedModels, Weights, align_pair, aligned, merged
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.names import Variant

from .controls import endpoint_experts, picked_units

MOST_POINTS = 10_000

VARIANTS: Mapping[Variant, str] = {
    "naive": "as it is",
    "random": "under a random element of its symmetry group",
    "units": "its units aligned, its experts in their order",
    "aligned": "aligned",
    "pick": "as it is; of every pair of units the larger one instead of their mean",
    "reference_experts": "as it is; the Mixtures of Experts are the reference's",
    "other_experts": "as it is; the Mixtures of Experts are the other's",
}
"""Path -> the other model on it."""

MATCHED: tuple[Variant, ...] = ("units", "aligned")
"""Variants that are averaged in one gauge; the others, as controls, as they are."""

UNAVERAGED: tuple[Variant, ...] = ("pick", "reference_experts", "other_experts")
"""Controls without a mean of experts that could be repaired."""

WeightPath = Callable[[float], Weights]
"""t in [0, 1] -> the weights of a model under module names; t = 0 is the reference, t = 1 the other."""


def linear_path(reference: Weights, other: Weights, specs: Sequence[MoeLayerSpec] = ()) -> WeightPath:
    """`t -> (1 - t) reference + t other`, the layers of `specs` in the free scales of the reference."""
    return lambda t: merged([reference, other], (1 - t, t), specs, gauge=True)


def control_path(variant: Variant, reference: Weights, other: Weights, specs: Sequence[MoeLayerSpec]) -> WeightPath:
    """The path of a control of `UNAVERAGED`; at its ends, too, the layers of `specs` are the control's."""
    models = [reference, other]
    if variant == "pick":
        return lambda t: picked_units(models, (1 - t, t), specs)
    return lambda t: endpoint_experts(models, (1 - t, t), specs, int(variant == "other_experts"))


def variant_weights(variant: Variant, pair: CheckedModels, alignment: Alignment, seed: int) -> Weights:
    """The weights of the other model of `pair` in a variant, computed layer by layer when asked for.

    Args:
        variant: one of `VARIANTS`; "units" matches the units of all layers now.
        pair: the reference and the other.
        alignment: of the other.
        seed: of the random element.
    """
    (other,) = pair.others
    match variant:
        case "naive" | "pick" | "reference_experts" | "other_experts":
            return other.tensors
        case "random":
            generator = torch.Generator().manual_seed(seed)
            shapes = {spec.name: spec.read(other.on_meta).symmetry_shape for spec in other.layers}
            symmetries = {
                spec.name: spec.group.random_derangement(*shapes[spec.name], generator=generator)
                for spec in other.layers
            }
        case "units":
            symmetries = align_pair(pair, AlignmentConfig("units")).symmetries
        case "aligned":
            symmetries = alignment.symmetries
    return aligned(other.tensors, other.layers, symmetries)


def points_of(points: int, t: Sequence[float] | None = None) -> tuple[float, ...]:
    """The positions `t`, or else so many equally spaced points from 0 to 1.

    Raises:
        BadInputError: there are fewer than three, for two show no barrier, or they do not ascend from 0 to 1.
    """
    if points > MOST_POINTS:
        raise BadInputError(f"a path needs no {points} points; give {MOST_POINTS} at most")
    places = tuple(np.linspace(0, 1, max(points, 0)).tolist() if t is None else map(float, t))
    if len(places) < 3 or (places[0], places[-1]) != (0, 1) or not all(a < b for a, b in pairwise(places)):
        given = f"{points} points" if t is None else f"t = {t}"
        raise BadInputError(f"a path needs three points or more, ascending from 0 to 1, not {given}")
    return places
