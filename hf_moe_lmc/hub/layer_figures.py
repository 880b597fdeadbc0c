"""How far the layers of a pair were apart, and what their alignment moved."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_moe_lmc.alignment import Alignment


@dataclass(frozen=True)
class LayerFigures:
    """One layer of an alignment.

    Args:
        name: module name.
        distance_before, distance_after: to the reference.
        experts_moved, units_moved: share of the experts, and of the units within their expert (shared experts
            included), that are not at the place that they had.
        verdict: of the layer; None where the alignment was not found by matching.
    """

    name: str
    distance_before: float
    distance_after: float
    experts_moved: float
    units_moved: float
    verdict: str | None


def layer_figures(alignment: Alignment) -> list[LayerFigures]:
    """The figures of every layer, in the order of the alignment."""
    figures = []
    for name, layer in alignment.layers.items():
        symmetry = layer.symmetry
        units = [part.permutation.index for part in (symmetry.units, symmetry.shared_units) if part is not None]
        figures.append(
            LayerFigures(
                name,
                layer.distance_before,
                layer.distance_after,
                _moved([symmetry.experts.index]),
                _moved(units),
                layer.evidence.label.replace("_", " ") if layer.evidence else None,
            )
        )
    return figures


def _moved(orders: list[Tensor]) -> float:
    """Share of the entries, along the last axis of index tensors, that are not at their place."""
    stays = [(order == torch.arange(order.shape[-1])).flatten() for order in orders]
    return 1 - torch.cat(stays).double().mean().item()
