"""A checkpoint written as a stream: any part of the model in any order, every tensor straight to its place."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import xxhash
from torch import Tensor
from transformers import PreTrainedModel

from hf_moe_lmc.errors import BadInputError, OutputError

from .conversion import tensor_groups
from .durable import sync
from .layout import Placement, header, index
from .shards import INDEX_NAME
from .stored_tensor import StoredTensor, max_abs, read_header, tensor_bytes

# Key -> digest of the tensor's bytes: XXH3 against accidents, sha-256 where others rely on it.
Digests = dict[str, str]


class CheckpointWriter:
    """Writes tensors under module names to their places in a folder; goes on with what another one left there.

    Args:
        folder: made if need be.
        placement: of every tensor in it.
        model: a skeleton.
    """

    def __init__(self, folder: Path, placement: Placement, model: PreTrainedModel) -> None:
        self._folder = folder
        self._placement = placement
        on_meta = {key: torch.empty(t.shape, dtype=t.dtype, device="meta") for key, t in placement.items()}
        self.groups, _ = tensor_groups(model, on_meta)
        self._group_of = {name: group for group in self.groups for name in group.names}
        folder.mkdir(exist_ok=True)
        for file, tensors in self._files().items():
            _prepare(file, tensors)
        sync(folder)

    def write(self, weights: Mapping[str, Tensor], names: Iterable[str]) -> Digests:
        """Write the tensors of `names`, whole groups of them; they are on the disk when this returns.

        Each tensor is asked for once, and forgotten when its group is written.

        Returns:
            their XXH3 digests.

        Raises:
            BadInputError: a value does not fit the dtype that it is written in.
        """
        digests, files = {}, set()
        for group in {id(group): group for group in map(self._group_of.__getitem__, names)}.values():
            tensors = {name: weights[name] for name in group.names}
            for key, tensor in group.to_stored(tensors).items():
                place = self._placement[key]
                digests[key] = _write(place, _cast(key, tensor, place.dtype))
                files.add(place.file)
        for file in files:
            sync(file)
        return digests

    def finish(self, digests: Digests) -> Digests:
        """Write the index, and read everything again.

        Args:
            digests: of all tensors, as `write` returned them.

        Returns:
            the sha-256 digests of all tensors.

        Raises:
            OutputError: the disk does not return what was written.
        """
        if content := index(self._placement):
            (self._folder / INDEX_NAME).write_bytes(content)
        for file, tensors in self._files().items():
            if read_header(file) != {tensor.key: tensor for tensor in tensors}:
                raise OutputError(f"{file} does not hold what was written; check the disk")
        lasting = {}
        for key, tensor in self._placement.items():
            xxh3, lasting[key] = tensor.digests()
            if xxh3 != digests.get(key):
                raise OutputError(f"{tensor.file}: {key} is not what was written; check the disk")
        return lasting

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
    if not math.isfinite(max_abs(tensor)):
        raise BadInputError(f"{key} holds NaN, infinite values, or values too large for {dtype}; try another --dtype")
    return tensor.contiguous()


def _write(place: StoredTensor, tensor: Tensor) -> str:
    content = tensor_bytes(tensor)
    with place.file.open("r+b", buffering=0) as file:
        file.seek(place.offset)
        rest = content
        while rest:
            rest = rest[file.write(rest) :]
    return xxhash.xxh3_128_hexdigest(content)
