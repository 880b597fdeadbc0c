"""A checkpoint written as a stream: any part of the model in any order, every tensor straight to its place."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_moe_lmc.errors import BadInputError, OutputError

from .conversion import tensor_groups
from .layout import Placement, header, index
from .output_folder import Digests, StagedFolder
from .shards import INDEX_NAME
from .stored_tensor import StoredTensor, read_header, tensor_bytes


class CheckpointWriter:
    """Writes tensors under module names to the places of `placement` in a staged folder.

    Args:
        staged: where; steps that it has recorded are not asked for again.
        placement: of every tensor.
        model: a skeleton.
    """

    def __init__(self, staged: StagedFolder, placement: Placement, model: PreTrainedModel) -> None:
        self._staged = staged
        self._placement = placement
        on_meta = {key: torch.empty(t.shape, dtype=t.dtype, device="meta") for key, t in placement.items()}
        groups, _ = tensor_groups(model, on_meta)
        self.groups = groups
        self._group_of = {name: group for group in groups for name in group.names}
        for file, tensors in self._files().items():
            _prepare(file, tensors)

    def write(self, step: str, tensors: Mapping[str, Tensor]) -> None:
        """Write `tensors`, whole groups of them, and record `step` once they are on disk.

        Raises:
            BadInputError: a value does not fit the dtype that it is written in.
        """
        digests, files = {}, set()
        for group in {id(group): group for group in map(self._group_of.__getitem__, tensors)}.values():
            for key, tensor in group.to_stored(tensors).items():
                place = self._placement[key]
                digests[key] = _write(place, _cast(key, tensor, place.dtype))
                files.add(place.file)
        for file in files:
            _sync(file)
        self._staged.record(step, digests)

    def finish(self) -> Digests:
        """Write the index, and read everything again; returns the sha-256 of every tensor.

        Raises:
            OutputError: the disk does not return what was written.
        """
        if content := index(self._placement):
            self._staged.write_file(INDEX_NAME, content)
        digests = {key: digest for step in self._staged.done.values() for key, digest in step.items()}
        for file, tensors in self._files().items():
            if read_header(file) != {tensor.key: tensor for tensor in tensors}:
                raise OutputError(f"{file} does not hold what was written; check the disk")
        for key, tensor in self._placement.items():
            if tensor.digest() != digests.get(key):
                raise OutputError(f"{tensor.file}: {key} is not what was written; check the disk")
        return digests

    def _files(self) -> dict[Path, list[StoredTensor]]:
        files: dict[Path, list[StoredTensor]] = {}
        for tensor in self._placement.values():
            files.setdefault(tensor.file, []).append(tensor)
        return files


def _prepare(file: Path, tensors: list[StoredTensor]) -> None:
    size = max(tensor.offset + tensor.nbytes for tensor in tensors)
    if file.exists() and file.stat().st_size == size:
        return
    with file.open("wb") as opened:
        opened.write(header(tensors))
        opened.truncate(size)


def _cast(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    if dtype.is_floating_point and tensor.numel():
        # The extremes carry any NaN, and one pass over them is an order faster than isfinite.
        low, high = tensor.aminmax()
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise BadInputError(f"{key} holds NaN, infinite values, or values too large for {dtype}")
    return tensor.contiguous()


def _write(place: StoredTensor, tensor: Tensor) -> str:
    content = tensor_bytes(tensor)
    with place.file.open("r+b", buffering=0) as file:
        file.seek(place.offset)
        rest = content
        while rest:
            rest = rest[file.write(rest) :]
    return hashlib.sha256(content).hexdigest()


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
