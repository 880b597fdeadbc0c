"""Merging several models into their weighted mean."""

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.checkpoints import check_output
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.merging import average

from .align_many import MutualAlignment, align_many_opened
from .alignment import LiveModel, apply_symmetries
from .apply import check_layers, check_weights
from .config import AlignmentConfig
from .merge import widened
from .opened_model import open_checkpoint, open_model
from .pair import check_pair
from .processes import processes
from .resources import Resources
from .steps import Step
from .stream import OutputOptions, read_paths, write_checkpoints


def merge_many(
    models: Sequence[LiveModel], alignment: MutualAlignment | None = None, weights: Sequence[float] | None = None
) -> LiveModel:
    """A new model with the weights `sum_i w_i (alignment_i . model_i)`; no model is changed.

    Args:
        models: two or more of one class; the first gives the merge its configuration and dtypes.
        alignment: what `align_many(models)` found; None aligns on the way.
        weights: w, one per model, in any unit; None gives all the same.

    Raises:
        BadInputError: there are fewer than two models, or the weights are no weights of theirs.
        IncompatiblePairError: the models differ in class or size, or the alignment was not made for them.
    """
    shares = _shares(models, weights, alignment)
    opened = [open_model(model) for model in models]
    for other in opened[1:]:
        check_pair(opened[0], other)
    found = alignment or align_many_opened(opened)
    for part, other in zip(found.alignments, opened[1:], strict=True):
        check_layers(part, other)
    merged = deepcopy(models[0])
    # Tied weights have several names, and must move once.
    own = dict({tensor.data_ptr(): (name, tensor) for name, tensor in reversed(merged.state_dict().items())}.values())
    layers = opened[0].layers
    inside = {name for spec in layers for name in spec.tensor_names}
    with torch.no_grad():
        for specs, names in [*(([spec], spec.tensor_names) for spec in layers), ([], own.keys() - inside)]:
            tensors = [{name: model.tensors[name] for name in names} for model in opened]
            for name, tensor in _averaged(tensors, specs, found, shares).items():
                own[name].copy_(tensor)
    return merged


def merge_many_checkpoints(
    models: Sequence[str | Path],
    output: str | Path,
    alignment: MutualAlignment | AlignmentConfig | None = None,
    weights: Sequence[float] | None = None,
    options: OutputOptions | None = None,
    resources: Resources | None = None,
) -> MutualAlignment:
    """As `merge_many`, from folders or the Hub to a folder, layer by layer; the models may be larger than memory.

    Args:
        models: two or more; the first gives the merge its configuration, layout, dtypes and tokenizer.
        output: a new folder.
        alignment: what `align_many(models)` found, or how to align first.
        weights: as for `merge_many`.
        options: layout, dtype, overwrite.
        resources: as for `align_many`.

    Returns:
        the alignment.

    Raises:
        As `merge_many`, and as `merge_checkpoints`.
    """
    found = alignment if isinstance(alignment, MutualAlignment) else None
    shares = _shares(models, weights, found)
    options = options or OutputOptions()
    opened = [open_checkpoint(model) for model in models]
    first, *others = opened
    for other in others:
        check_pair(first, other)
    check_output(Path(output), read_paths(*opened), options.overwrite)
    config = None if isinstance(alignment, MutualAlignment) else alignment
    found = found or align_many_opened(opened, config, resources)
    for part, other in zip(found.alignments, others, strict=True):
        check_layers(part, other)
    records = [found.alignments[0].reference, *(part.other for part in found.alignments)]

    def compute(step: Step) -> Iterator[dict[str, Tensor]]:
        tensors = [model.read(step.names) for model in opened]
        for record, model, own in zip(records, opened, tensors, strict=True):
            check_weights(record, model, step, own)
        tensors[0] = {name: widened(tensor, options.dtype) for name, tensor in tensors[0].items()}
        yield _averaged(tensors, step.layers, found, shares)

    recipe = {
        "command": "merge_many",
        "alignments": [part.digest for part in found.alignments],
        "weights": shares,
        "reference": first.origin,
    }
    recipe |= {f"other {number}": other.origin for number, other in enumerate(others, start=1)}
    if processes().is_main_process:
        write_checkpoints(first, Path(output), {"": recipe}, compute, others, options)
    processes().wait_for_everyone()
    return found


def _shares(
    models: Sequence[object], weights: Sequence[float] | None, alignment: MutualAlignment | None
) -> list[float]:
    """The weights with sum 1."""
    if len(models) < 2:
        raise BadInputError(f"{len(models)} model given; give two or more")
    if alignment and len(alignment.alignments) != len(models) - 1:
        raise BadInputError(f"the alignment is of {len(alignment.alignments) + 1} models, and {len(models)} are given")
    weights = [1.0] * len(models) if weights is None else list(weights)
    total = math.fsum(weights)
    if len(weights) != len(models) or min(weights) < 0 or not 0 < total < math.inf:
        raise BadInputError(f"weights {weights} for {len(models)} models; give one per model, none negative, not all 0")
    return [weight / total for weight in weights]


def _averaged(
    tensors: Sequence[Mapping[str, Tensor]],
    layers: Sequence[MoeLayerSpec],
    alignment: MutualAlignment,
    shares: Sequence[float],
) -> dict[str, Tensor]:
    """The mean of some tensors of all models, those of the layers among them aligned."""
    names = [spec.name for spec in layers]
    aligned = [
        apply_symmetries(own, layers, {name: part.symmetries[name] for name in names})
        for own, part in zip(tensors[1:], alignment.alignments, strict=True)
    ]
    return {
        name: average(name, [tensor, *(own[name] for own in aligned)], shares) for name, tensor in tensors[0].items()
    }
