"""Aligning several models to one another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.matching import ExpertOrder, LayerAlignment, layer_distance, match_mutually
from hf_moe_lmc.moe import act
from hf_moe_lmc.symmetry import MoeSymmetry

from .align import align_opened
from .alignment import Alignment
from .config import AlignmentConfig
from .opened_model import Model, OpenedModel, open_model
from .resources import Resources


@dataclass(frozen=True)
class MutualAlignment:
    """What brings several models close to one another; the first stays as it is.

    Args:
        alignments: one per model but the first. Evidence is kept of layers that stayed as they were matched to the
            first model; what was moved on is no longer the answer to that question.
        reference_distance: root of the total squared distance of all pairs of models, over all layers, with every model
            aligned to the first.
        distance: the same with these alignments; never more.
    """

    alignments: tuple[Alignment, ...]
    reference_distance: float
    distance: float


def align_many(
    models: Sequence[Model], config: AlignmentConfig | ExpertOrder | None = None, resources: Resources | None = None
) -> MutualAlignment:
    """Alignments of several models to one another: cycle-consistent, and no farther apart than aligned to the first.

    Starts with `align(models[0], model)` of every other model, and goes on with `match_mutually`, layer by layer. Not
    proven to be the optimum: that would be a quadratic assignment. Layers of all models are held at a time.

    Args:
        models: two or more; live models, folders, or repositories on the Hub (`org/model@revision`).
        config: how to match; or only the expert order.
        resources: as for `align`; what follows happens on the CPU.

    Raises:
        BadInputError: there are fewer than two models.
        As `align`.
    """
    return align_many_opened([open_model(model) for model in models], config, resources)


def align_many_opened(
    models: Sequence[OpenedModel],
    config: AlignmentConfig | ExpertOrder | None = None,
    resources: Resources | None = None,
) -> MutualAlignment:
    """As `align_many`, for models that are open already."""
    if len(models) < 2:
        raise BadInputError(f"{len(models)} model given; give two or more")
    config = AlignmentConfig.of(config)
    first, *others = models
    starts = [align_opened(first, other, config, resources=resources) for other in others]
    layers: list[dict[str, LayerAlignment]] = [{} for _ in others]
    totals = []
    for name in starts[0].layers:
        specs = [next(spec for spec in model.layers if spec.name == name) for model in models]
        own = [spec.read(model.read(spec.tensor_names)) for spec, model in zip(specs, models, strict=True)]
        found = [start.layers[name] for start in starts]
        symmetries = [MoeSymmetry.identity(*own[0].symmetry_shape), *(layer.symmetry for layer in found)]
        matching = match_mutually(own, symmetries, config.expert_order)
        totals.append((matching.start_distance, matching.distance))
        for part, layer, start, symmetry in zip(layers, own[1:], found, matching.symmetries[1:], strict=True):
            distance = layer_distance(own[0], act(symmetry, layer))
            moved = LayerAlignment(symmetry, start.distance_before, distance)
            part[name] = start if symmetry == start.symmetry else moved
    before, after = (math.hypot(*distances) for distances in zip(*totals, strict=True))
    found = tuple(replace(start, layers=part) for start, part in zip(starts, layers, strict=True))
    return MutualAlignment(found, before, after)
