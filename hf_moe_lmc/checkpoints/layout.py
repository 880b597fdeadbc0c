"""The place of every tensor of a new checkpoint, decided before the first is written."""

import json
import math
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from transformers import PreTrainedModel

from hf_moe_lmc.names import Layout, Quantisation

from .checkpoint import Checkpoint
from .conversion import original_tensors, saved_tensors
from .quantised import BLOCK, CODES, SCALE, quantisable
from .shards import SINGLE_NAME
from .stored_tensor import DTYPE_NAMES, StoredTensor

SHARD_NAME = "model{suffix}.safetensors"
SHARD_BYTES = 50 * 10**9  # as `save_pretrained`

# Key -> where the tensor will lie.
Placement = dict[str, StoredTensor]


def place(
    source: Checkpoint | PreTrainedModel,
    folder: Path,
    layout: Layout = "kept",
    dtype: torch.dtype | None = None,
    quantise: Quantisation | None = None,
    kept: Iterable[str] = (),
) -> Placement:
    """The places of the tensors of a checkpoint made like `source`, in `folder`.

    Args:
        source: a checkpoint, or a model, live or on the meta device.
        folder: of the new files.
        layout: "kept", the keys and shards of the checkpoint; "original", the keys that `save_pretrained` writes by
            default; "fused", module names. The keys of a model are kept as `save_pretrained` writes them.
        dtype: of all floating-point tensors; None keeps every tensor's own.
        quantise: whether linears and experts become codes and scales.
        kept: module names of weights that never do.

    Raises:
        UnsupportedArchitectureError: the model cannot be quantised.
    """
    shards = _kept(source) if isinstance(source, Checkpoint) and layout == "kept" else _sharded(_saved(source, layout))
    shards = {
        name: {key: (_cast(own, dtype), shape) for key, (own, shape) in entries.items()}
        for name, entries in shards.items()
    }
    if quantise:
        model = source.model if isinstance(source, Checkpoint) else source
        stored = {
            key: torch.empty(shape, dtype=own, device="meta")
            for entries in shards.values()
            for key, (own, shape) in entries.items()
        }
        keys = quantisable(model, stored, kept)
        shards = {name: _with_scales(entries, keys) for name, entries in shards.items()}
    return {
        key: StoredTensor(key, folder / name, kind, shape, offset)
        for name, entries in shards.items()
        for key, kind, shape, offset in _with_offsets(entries)
    }


def header(tensors: Iterable[StoredTensor]) -> bytes:
    """The first bytes of the safetensors file that holds exactly `tensors`."""
    ordered = sorted(tensors, key=lambda tensor: tensor.offset)
    return _header({tensor.key: (tensor.dtype, tensor.shape) for tensor in ordered})


def index(placement: Placement) -> bytes | None:
    """`model.safetensors.index.json`; None if there is but one file."""
    if {tensor.file.name for tensor in placement.values()} == {SINGLE_NAME}:
        return None
    weight_map = {key: placement[key].file.name for key in sorted(placement)}
    size = sum(tensor.nbytes for tensor in placement.values())
    return json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}, indent=2).encode() + b"\n"


Entries = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def _kept(checkpoint: Checkpoint) -> dict[str, Entries]:
    shards: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {}
    # Experts of one tensor may change places: each place has room for all of them.
    dtypes = {key: checkpoint.dtype_of(group) for group in checkpoint.groups for key in group.keys}
    for tensor in sorted(checkpoint.stored.values(), key=lambda tensor: (tensor.file.name, tensor.offset)):
        shards.setdefault(tensor.file.name, {})[tensor.key] = dtypes[tensor.key], tensor.shape
    return dict(shards)


def _saved(source: Checkpoint | PreTrainedModel, layout: Layout) -> Entries:
    if isinstance(source, Checkpoint):
        model, tensors, ignored = source.model, source.on_meta(), source.ignored
    else:
        model, tensors, ignored = source, saved_tensors(source), ()
    own = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    if layout != "fused":
        own = original_tensors(model, own)
    return {key: (t.dtype, tuple(t.shape)) for key, t in (own | {key: tensors[key] for key in ignored}).items()}


def _with_scales(entries: Entries, keys: Container[str]) -> Entries:
    """`entries` as `quantised` writes them, those of `keys` as codes and scales."""
    stored: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for key, (dtype, shape) in entries.items():
        stored[key] = CODES if key in keys else dtype, shape
        if key in keys:
            *experts, rows, columns = shape
            stored[f"{key}{SCALE}"] = torch.float32, (*experts, rows // BLOCK, columns // BLOCK)
    return stored


def _cast(dtype: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted and dtype.is_floating_point else dtype


def _nbytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize


def _sharded(entries: Entries) -> dict[str, Entries]:
    split = split_state_dict_into_shards_factory(
        dict(entries),
        get_storage_size=lambda entry: _nbytes(*entry),
        filename_pattern=SHARD_NAME,
        max_shard_size=SHARD_BYTES,
    )
    return {name: {key: entries[key] for key in keys} for name, keys in split.filename_to_tensors.items()}


def _header(entries: Entries) -> bytes:
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for key, (dtype, shape) in entries.items():
        end = start + _nbytes(dtype, shape)
        described[key] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _with_offsets(entries: Entries) -> list[tuple[str, torch.dtype, tuple[int, ...], int]]:
    # Wide dtypes first keeps every tensor aligned, as safetensors does.
    ordered = dict(sorted(entries.items(), key=lambda item: -item[1][0].itemsize))
    offset, placed = len(_header(ordered)), []
    for key, (dtype, shape) in ordered.items():
        placed.append((key, dtype, shape, offset))
        offset += _nbytes(dtype, shape)
    return placed
