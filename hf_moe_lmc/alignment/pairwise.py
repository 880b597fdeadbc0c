"""Aligning one model to another, layer by layer."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers.utils import logging

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.checkpoints import OF_A_CARD, max_abs, output_folder, sync
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError, UnsupportedArchitectureError
from hf_moe_lmc.matching import align_layers
from hf_moe_lmc.progress import Progress
from hf_moe_lmc.workers import each, one_thread_per_operation

from .alignment import Alignment
from .config import CONFIG_NAME, AlignmentConfig, versions
from .job import Team, processes
from .model_record import ModelRecord, layer_digest
from .opened_model import OpenedModel
from .pair import CheckedModels
from .resources import Resources, matching_bytes
from .saved_alignment import SAVED_FILES

LARGEST = 1e15  # sums of squares stay within float32
MANY_EXPERTS = 128

logger = logging.get_logger(__name__)


@one_thread_per_operation()
def align_pair(
    pair: CheckedModels, config: AlignmentConfig, resources: Resources | None = None, kept: Path | None = None
) -> Alignment:
    """Weight matching of two models: per layer the symmetry that brings the second close to the first.

    Checkpoints are read layer by layer; under `accelerate launch` or `torchrun` the processes, all of which must call
    this, divide the layers of checkpoints and all get the same alignment.

    Args:
        pair: two models.
        config: the settings.
        resources: where layers are matched, and within how much memory.
        kept: an existing folder, in which every layer is kept once it is aligned; those there are not aligned again.

    Raises:
        IncompatiblePairError: the layers differ in kind or size.
        UnsupportedArchitectureError: a layer admits no such matching.
        BadInputError: a checkpoint is damaged, a weight is NaN or infinite, or memory does not suffice.
    """
    if config.expert_order == "none":
        raise BadInputError('the expert order "none" aligns nothing; choose another')
    reference, other = pair.models
    pairs = list(zip(reference.all_layers, other.all_layers, strict=True))
    team = Team.of(pair.models)
    device = (resources or Resources()).device_for(matching_bytes(reference, other))
    experts = max((spec.num_experts for spec in reference.all_layers), default=0)
    if config.expert_order == "joint" and experts > MANY_EXPERTS:
        logger.warning_once(
            f'the expert order "joint" matches the units of up to {experts**2:,} pairs of experts in a layer, '
            f'"auto" of at most {4 * experts:,}'
        )
    share, parts = team.share(pairs), []
    with _progress(reference, other, share, hidden=team.index > 0) as bar:
        for spec, other_spec in share:
            align_now = partial(_align_layer, reference, spec, other, other_spec, config, device)
            parts.append(_kept_layer(kept, spec.name, align_now))
            bar.set_postfix_str(f"{len(parts)} of {len(share)} layers", refresh=False)
            bar.update(_nbytes(reference, spec) + _nbytes(other, other_spec))
    for side in (reference, other):
        side.check_unchanged()
    order = [spec.name for spec in reference.all_layers]
    parts = sorted(chain(*team.gather(parts)), key=lambda part: order.index(*part.layers))
    return Alignment(
        {name: layer for part in parts for name, layer in part.layers.items()},
        config,
        _record(reference, _digests(part.reference for part in parts)),
        _record(other, _digests(part.other for part in parts)),
    )


def align_into(
    output: Path, pair: CheckedModels, config: AlignmentConfig, resources: Resources, overwrite: bool = False
) -> Alignment:
    """`align_pair(pair, config, resources).save_pretrained(output)`; the folder appears complete or not at all.

    Killed and called again with the same arguments, it goes on after the last layer that was finished.

    Raises:
        OutputError: the output folder may not be written.
        As `align_pair`.
    """
    recipe = {
        "command": "align",
        "config": asdict(config),
        "device": str(resources.device) if resources.device else None,
        "models": [side.origin for side in pair.models],
        "inputs": [side.fingerprint for side in pair.models],
        "versions": versions(),
    }
    paths = [path for side in pair.models for path in side.paths]
    folder = output_folder(output, recipe, paths, 0, overwrite, CONFIG_NAME, (*SAVED_FILES, *OF_A_CARD))
    with folder if processes().is_main_process else nullcontext() as staged:
        (kept,) = broadcast_object_list([staged.scratch if staged else None])
        # On another machine the folder may not exist; layers are then aligned there again.
        alignment = align_pair(pair, config, resources, kept if kept.is_dir() else None)
        if staged:
            alignment.save_pretrained(staged.path)
    processes().wait_for_everyone()
    return alignment


def _kept_layer(folder: Path | None, name: str, align: partial[Alignment]) -> Alignment:
    """`align()`, the alignment of the layer `name`; or that which a killed run left in `folder`."""
    if folder is None:
        return align()
    if not (place := folder / name).exists():
        unfinished = folder / f"{name}.partial"
        align().save_pretrained(unfinished)
        for file in unfinished.iterdir():
            sync(file)
        os.rename(unfinished, place)
    return Alignment.from_pretrained(place)


def _progress(
    reference: OpenedModel, other: OpenedModel, pairs: Sequence[tuple[MoeLayerSpec, MoeLayerSpec]], hidden: bool
) -> Progress:
    total = sum(_nbytes(reference, spec) + _nbytes(other, other_spec) for spec, other_spec in pairs)
    return Progress(total=total, desc="aligning", unit="B", unit_scale=True, unit_divisor=1000, disable=hidden)


def _nbytes(side: OpenedModel, spec: MoeLayerSpec) -> int:
    return sum(side.sizes[name] for name in spec.tensor_names)


def _align_layer(
    reference: OpenedModel,
    spec: MoeLayerSpec,
    other: OpenedModel,
    other_spec: MoeLayerSpec,
    config: AlignmentConfig,
    device: torch.device,
) -> Alignment:
    """The alignment of one layer, matched on `device`."""
    tensors = reference.read(spec.tensor_names, device)
    other_tensors = other.read(other_spec.tensor_names, device)
    _check_values(reference, spec, tensors)
    _check_values(other, other_spec, other_tensors)
    try:
        layer = align_layers(spec.read(tensors), other_spec.read(other_tensors), config.expert_order)
    except (IncompatiblePairError, UnsupportedArchitectureError) as error:
        raise type(error)(f"layer {spec.name}: {error}") from None
    except BadInputError as error:
        raise BadInputError(
            f"layer {spec.name} of {reference.name} and {other.name}: {error}; such large weights need another expert "
            "order, as gate is"
        ) from None
    return Alignment(
        {spec.name: layer},
        config,
        _record(reference, {spec.name: layer_digest(spec, tensors)}),
        _record(other, {spec.name: layer_digest(other_spec, other_tensors)}),
    )


def _check_values(side: OpenedModel, spec: MoeLayerSpec, tensors: Mapping[str, Tensor]) -> None:
    for name, largest in zip(tensors, each(max_abs, tensors.values()), strict=True):
        if not math.isfinite(largest):
            side.check_finite(spec.tensor_names)
            raise BadInputError(f"{name} holds NaN or infinite values in {side.name}")
        if largest > LARGEST:
            raise BadInputError(
                f"{name} holds {largest:.0e} in {side.name}; beyond {LARGEST:.0e}, weights cannot be compared"
            )


def _record(side: OpenedModel, digests: dict[str, str]) -> ModelRecord:
    return ModelRecord(side.name, side.source.commit if side.source else None, digests)


def _digests(records: Iterable[ModelRecord | None]) -> dict[str, str]:
    return {name: digest for record in records if record for name, digest in record.digests.items()}
