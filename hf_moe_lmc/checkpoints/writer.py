"""A checkpoint written as a stream: any part of the model in any order, every tensor straight to its place."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import xxhash
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_moe_lmc.errors import BadInputError, OutputError
from hf_moe_lmc.workers import each

from .conversion import tensor_groups
from .durable import sync
from .layout import Placement, header, index
from .quantised import CODES, SCALE, WEIGHT, quantisation_settings, quantised
from .shards import INDEX_NAME
from .stored_tensor import StoredTensor, max_abs, read_header, tensor_bytes

logger = logging.get_logger(__name__)

# Key -> XXH3 digest of the tensor's bytes, and how many of its values were too small for the dtype written, and are 0.
Written = dict[str, tuple[str, int]]


class CheckpointWriter:
    """Writes tensors under module names to their places in a folder; goes on with what another one left there.

    Args:
        folder: made if need be.
        placement: of every tensor in it.
        model: a skeleton.

    `quantisation` are the settings of the quantised weights, if there are any.
    """

    def __init__(self, folder: Path, placement: Placement, model: PreTrainedModel) -> None:
        self._folder = folder
        self._placement = placement
        self._codes = {key for key, place in placement.items() if place.dtype == CODES}
        scales, plain = {f"{key}{SCALE}" for key in self._codes}, dict.fromkeys(self._codes, WEIGHT)
        on_meta = {
            key: torch.empty(place.shape, dtype=plain.get(key, place.dtype), device="meta")
            for key, place in placement.items()
            if key not in scales
        }
        self.groups, ignored = tensor_groups(model, on_meta)
        matrices = [key for key in ignored if on_meta[key].ndim > 1]
        self.quantisation = quantisation_settings(model, self.groups, self._codes, matrices) if self._codes else None
        self._group_of = {name: group for group in self.groups for name in group.names}
        folder.mkdir(exist_ok=True)
        for file, tensors in self._files().items():
            _prepare(file, tensors)
        sync(folder)

    def write(self, weights: Mapping[str, Tensor], names: Iterable[str]) -> Written:
        """Write the tensors of `names`, whole groups of them; they are on the disk when this returns.

        Each tensor is asked for once, and forgotten when its group is written.

        Raises:
            BadInputError: a value does not fit the dtype that it is written in.
        """
        results: Written = {}
        files = set()
        for group in {id(group): group for group in map(self._group_of.__getitem__, names)}.values():
            stored = group.to_stored({name: weights[name] for name in group.names})
            finite = {key: _cast(key, stored[key], WEIGHT) for key in stored.keys() & self._codes}
            stored = quantised(stored | finite, self._codes)
            places = [self._placement[key] for key in stored]
            written = each(lambda own: _write(*own), zip(places, stored.values(), strict=True))
            results |= dict(zip(stored, written, strict=True))
            files |= {place.file for place in places}
        for file in files:
            sync(file)
        return results

    @property
    def keys(self) -> list[str]:
        """The keys of all tensors."""
        return list(self._placement)

    def read_again(self, written: Written, keys: Iterable[str]) -> None:
        """Compare the tensors `keys`, as the disk returns them, with what was written.

        Args:
            written: of all tensors, as `write` returned it, perhaps that of another writer.
            keys: which ones.

        Raises:
            OutputError: the disk does not return what was written.
        """
        tensors = [self._placement[key] for key in keys]
        for tensor, digest in zip(tensors, each(StoredTensor.digest, tensors), strict=True):
            if tensor.key not in written or digest != written[tensor.key][0]:
                raise OutputError(f"{tensor.file}: {tensor.key} is not what was written; check the disk")

    def finish(self, written: Written) -> None:
        """Write the index, and warn of values that became 0; `written` as for `read_again`.

        Raises:
            OutputError: the disk does not return the header of a file.
        """
        if content := index(self._placement):
            (self._folder / INDEX_NAME).write_bytes(content)
        if vanished := {key: count for key, (_, count) in written.items() if count}:
            logger.warning(
                f"{sum(vanished.values())} values are too small for the dtype written and became 0, such as some of "
                f"{min(vanished)}"
            )
        for file, tensors in self._files().items():
            if read_header(file) != {tensor.key: tensor for tensor in tensors}:
                raise OutputError(f"{file} does not hold what was written; check the disk")

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


def _nonzeros(tensor: Tensor) -> int:
    return int((tensor.float() if tensor.itemsize == 1 else tensor).count_nonzero())  # torch counts no 8-bit floats


def _write(place: StoredTensor, tensor: Tensor) -> tuple[str, int]:
    """Write a tensor to its place; its XXH3 digest, and how many of its values vanished in the dtype there."""
    cast = _cast(place.key, tensor, place.dtype)
    vanished = 0 if cast.dtype == tensor.dtype else _nonzeros(tensor) - _nonzeros(cast)
    content = tensor_bytes(cast)
    with place.file.open("r+b", buffering=0) as file:
        file.seek(place.offset)
        rest = content
        while rest:
            rest = rest[file.write(rest) :]
    return xxhash.xxh3_128_hexdigest(content), vanished
