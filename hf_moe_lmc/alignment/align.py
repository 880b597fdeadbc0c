"""Aligning one model to another."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import gather_object
from huggingface_hub.utils import tqdm
from torch import Tensor

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.checkpoints import HubOptions, largest_magnitude
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError, UnsupportedArchitectureError
from hf_moe_lmc.matching import ExpertOrder, align_layers

from .alignment import Alignment
from .config import AlignmentConfig
from .kept_layers import kept_layer
from .model_record import ModelRecord, layer_digest
from .opened_model import Model, OpenedModel, open_model
from .pair import check_pair
from .processes import processes
from .resources import Resources, matching_bytes

LARGEST = 1e15  # sums of squares stay within float32


def align(
    reference: Model,
    other: Model,
    config: AlignmentConfig | ExpertOrder | None = None,
    reference_options: HubOptions | None = None,
    other_options: HubOptions | None = None,
    resources: Resources | None = None,
) -> Alignment:
    """Weight matching of two models: per layer the symmetry that brings `other` close to `reference`.

    Neither model is changed; `Alignment.apply` rewrites a live one, `apply` a checkpoint. Needs no data. Checkpoints
    are read layer by layer, so they may be larger than memory; under `accelerate launch` or `torchrun` the processes,
    all of which must call this, divide the layers of checkpoints and all get the same answer. Of quantised checkpoints
    only the experts are ordered, by their routers.

    Args:
        reference: stays as it is; a live model, a folder, or a repository on the Hub (`org/model@revision`).
        other: a model of the same class, experts and units in any order.
        config: how to match; or only the expert order.
        reference_options, other_options: revision, subfolder, token, cache_dir, local_files_only.
        resources: where layers are matched, and within how much memory.

    Raises:
        IncompatiblePairError: the models differ in what they compute, in class, or in the kind or size of a layer.
        UnsupportedArchitectureError: a Mixture-of-Experts block is not known.
        BadInputError: a checkpoint is damaged, a weight is NaN or infinite, or memory does not suffice.
    """
    first, second = open_model(reference, reference_options, True), open_model(other, other_options, True)
    return align_opened(first, second, config, resources=resources)


def align_opened(
    reference: OpenedModel,
    other: OpenedModel,
    config: AlignmentConfig | ExpertOrder | None = None,
    kept: Path | None = None,
    resources: Resources | None = None,
) -> Alignment:
    """As `align`, for models that are open already.

    With `kept`, an existing folder, every layer is kept there once it is aligned, and those there are not aligned anew.
    """
    config = AlignmentConfig.of(config)
    check_pair(reference, other)
    pairs = list(zip(reference.layers, other.layers, strict=True))
    # Live models may differ from process to process, or exist in one only.
    on_disk = reference.source is not None and other.source is not None
    state = processes() if on_disk else None
    device = (resources or Resources()).device_for(matching_bytes(reference, other, config))
    share = pairs[state.process_index :: state.num_processes] if state else pairs
    found = []
    with _progress(reference, other, share, hidden=bool(state and state.process_index)) as bar:
        for spec, other_spec in share:
            align_now = partial(_align_layer, reference, spec, other, other_spec, config, device)
            found.append(kept_layer(kept, spec.name, align_now))
            bar.set_postfix_str(f"{len(found)} of {len(share)} layers", refresh=False)
            bar.update(_nbytes(reference, spec) + _nbytes(other, other_spec))
    for side in (reference, other):
        side.check_unchanged()
    if state and state.num_processes > 1:
        found = gather_object(found)
        order = [spec.name for spec in reference.layers]
        found.sort(key=lambda part: order.index(*part.layers))
    return Alignment(
        {name: layer for part in found for name, layer in part.layers.items()},
        config,
        _record(reference, _digests(part.reference for part in found)),
        _record(other, _digests(part.other for part in found)),
    )


def _progress(
    reference: OpenedModel, other: OpenedModel, pairs: Sequence[tuple[MoeLayerSpec, MoeLayerSpec]], hidden: bool
) -> tqdm:
    total = sum(_nbytes(reference, spec) + _nbytes(other, other_spec) for spec, other_spec in pairs)
    return tqdm(total=total, desc="aligning", unit="B", unit_scale=True, unit_divisor=1000, disable=hidden)


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
    """The alignment of one layer, found on `device`."""
    tensors = reference.read(spec.tensor_names, device=device)
    other_tensors = other.read(other_spec.tensor_names, device=device)
    _check_values(reference, spec, tensors)
    _check_values(other, other_spec, other_tensors)
    try:
        found = align_layers(spec.read(tensors), other_spec.read(other_tensors), config.expert_order)
    except (IncompatiblePairError, UnsupportedArchitectureError) as error:
        raise type(error)(f"layer {spec.name}: {error}") from None
    return Alignment(
        {spec.name: found},
        config,
        _record(reference, {spec.name: layer_digest(spec, tensors)}),
        _record(other, {spec.name: layer_digest(other_spec, other_tensors)}),
    )


def _check_values(side: OpenedModel, spec: MoeLayerSpec, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        largest = largest_magnitude(tensor)
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
