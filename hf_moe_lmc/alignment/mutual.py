"""Aligning several models to one another."""

import math
from dataclasses import replace

from hf_moe_lmc.matching import LayerAlignment, layer_distance, match_mutually
from hf_moe_lmc.moe import act
from hf_moe_lmc.symmetry import MoeSymmetry
from hf_moe_lmc.workers import one_thread_per_operation

from .alignment import Alignment, MutualAlignment
from .config import AlignmentConfig
from .pair import CheckedModels
from .pairwise import align_pair
from .resources import Resources


@one_thread_per_operation()
def align_models(
    models: CheckedModels, config: AlignmentConfig, resources: Resources | None = None
) -> Alignment | MutualAlignment:
    """The alignment of two models, or of several to one another.

    Of several: cycle-consistent, and no farther apart than aligned to the first. Starts with `align_pair` of every
    model to the first, and goes on with `match_mutually`, layer by layer. Not proven to be the optimum: that would be a
    quadratic assignment. One layer of all models is held at a time.

    Args:
        models: two or more.
        config: the settings.
        resources: as for `align_pair`; what follows for several happens on the CPU.

    Raises:
        As `align_pair`.
    """
    first, *others = models.models
    starts = [align_pair(CheckedModels((first, other)), config, resources) for other in others]
    if len(starts) == 1:
        return starts[0]
    layers: list[dict[str, LayerAlignment]] = [{} for _ in others]
    totals = []
    for name in starts[0].layers:
        specs = [next(spec for spec in model.all_layers if spec.name == name) for model in models.models]
        own = [spec.read(model.read(spec.tensor_names)) for spec, model in zip(specs, models.models, strict=True)]
        start_layers = [start.layers[name] for start in starts]
        symmetries = [MoeSymmetry.identity(*own[0].symmetry_shape), *(layer.symmetry for layer in start_layers)]
        matching = match_mutually(own, symmetries, config.expert_order)
        totals.append((matching.start_distance, matching.distance))
        matched = zip(layers, own[1:], start_layers, matching.symmetries[1:], strict=True)
        for part, layer, start, symmetry in matched:
            distance = layer_distance(own[0], act(symmetry, layer))
            matched_on = LayerAlignment(symmetry, start.distance_before, distance)
            part[name] = start if symmetry == start.symmetry else matched_on
    before, after = (math.hypot(*distances) for distances in zip(*totals, strict=True))
    alignments = tuple(replace(start, layers=part) for start, part in zip(starts, layers, strict=True))
    return MutualAlignment(alignments, before, after)
