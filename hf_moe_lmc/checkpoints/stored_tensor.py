"""A tensor in a safetensors file: its place there, and reading it.

The header is checked and bytes are read with plain reads: a file that shrinks meanwhile is a short read, not a
crash, and no mapped pages stay behind.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from hf_moe_lmc.errors import BadInputError

from .small_files import MAX_BYTES, parse_json

CHUNK_BYTES = 2**20

# Names of the safetensors format.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# First bytes of what people have in the place of a safetensors file -> what it is.
WRONG_FORMATS = {
    b"version https://git-lfs": "a git-lfs pointer; fetch the file itself (git lfs pull)",
    b"<": "an HTML page; download the file again",
    b"PK": "a pickle, not safetensors; convert it first (model.save_pretrained)",
    b"\x80": "a pickle, not safetensors; convert it first (model.save_pretrained)",
}


@dataclass(frozen=True)
class Stored(ABC):
    """A tensor that is read, and perhaps computed, when it is asked for.

    Args:
        key: its name in the checkpoint.
        file: the safetensors file.
        dtype, shape: of the tensor.
        offset: of its first byte in the file.
    """

    key: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    def read(self, device: torch.device | str | None = None) -> Tensor:
        """The tensor, on a device; None is the CPU.

        Raises:
            BadInputError: a file has become shorter or unreadable.
        """
        tensor = torch.empty(self.shape, dtype=self.dtype, device=device)
        self.read_into(tensor)
        return tensor

    @abstractmethod
    def read_into(self, tensor: Tensor) -> None:
        """Read the values into `tensor` of this shape."""


@dataclass(frozen=True)
class StoredTensor(Stored):
    """A tensor whose values lie in a file as they are."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read_into(self, tensor: Tensor) -> None:
        """Read the values into `tensor` of this shape.

        Without another copy where it is contiguous, of this dtype, and on the CPU.
        """
        if tensor.dtype != self.dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
            tensor.copy_(self.read())
            return
        buffer = tensor_bytes(tensor)
        with self._opened() as file:
            while buffer and (count := file.readinto(buffer)):
                buffer = buffer[count:]
        self._check_complete(len(buffer))

    def digest(self) -> str:
        """XXH3 of 128 bits of its bytes; made against accidents, at the speed of memory."""
        xxh3, left, buffer = xxhash.xxh3_128(), self.nbytes, memoryview(bytearray(min(self.nbytes, CHUNK_BYTES)))
        with self._opened() as file:
            while left and (count := file.readinto(buffer[:left])):
                xxh3.update(buffer[:count])
                left -= count
        self._check_complete(left)
        return xxh3.hexdigest()

    @contextmanager
    def _opened(self) -> Iterator[FileIO]:
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.offset)
                yield file
        except OSError as error:
            raise BadInputError(f"cannot read {self.file}: {self.key}: {error.strerror}") from None

    def _check_complete(self, missing: int) -> None:
        if missing:
            raise BadInputError(f"{self.file} ended while {self.key} was read; it must not change meanwhile")


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def max_abs(tensor: Tensor) -> float:
    """`max |x|`; NaN if any value is; 0 for what is never computed with: integers, and codes of 8 bits."""
    if not tensor.is_floating_point() or tensor.itemsize == 1 or not tensor.numel():
        return 0.0
    # The extremes carry any NaN, and finding them is an order faster than isfinite.
    return max(abs(extreme.item()) for extreme in tensor.aminmax())


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, by its key.

    Raises:
        BadInputError: the file is not safetensors, is cut off, or its header and its size disagree.
    """
    try:
        if file.exists() and not file.is_file():  # a pipe would never end
            raise BadInputError(f"{file} is not a file; download it again")
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(32)
            length = int.from_bytes(start[:8], "little")
            if len(start) < 8 or length > min(size - 8, MAX_BYTES):
                raise BadInputError(f"{file} is {_wrong_format(start, size)}")
            opened.seek(8)
            header = parse_json(opened.read(length), file)
    except OSError as error:
        raise BadInputError(f"cannot read {file}: {error.strerror}") from None
    header.pop("__metadata__", None)
    position = 8 + length
    tensors = {key: _stored_tensor(key, entry, file, position) for key, entry in header.items()}
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != position:
            raise BadInputError(f"{file}: {tensor.key} overlaps another tensor or leaves a hole; download it again")
        position += tensor.nbytes
    if position != size:
        raise BadInputError(f"{file} has {size} bytes, but its header describes {position}; download it again")
    return tensors


def _wrong_format(start: bytes, size: int) -> str:
    for signature, name in WRONG_FORMATS.items():
        if start.startswith(signature):
            return name
    return f"no safetensors file, or cut off at {size} bytes; download it again"


def _stored_tensor(key: str, entry: Any, file: Path, data: int) -> StoredTensor:
    if not isinstance(entry, Mapping) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadInputError(f"{file}: {key}: its header entry is not {{dtype, shape, data_offsets}}")
    name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(name, str) or name not in DTYPES:
        raise BadInputError(f"{file}: {key}: dtype {name!r} is not known")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise BadInputError(f"{file}: {key}: shape or data_offsets are not lists of sizes; download it again")
    tensor = StoredTensor(key, file, DTYPES[name], tuple(shape), data + offsets[0])
    if 0 in shape:
        raise BadInputError(f"{file}: {key} of shape {shape} holds nothing; download it again")
    if tensor.nbytes != offsets[1] - offsets[0]:
        raise BadInputError(f"{file}: {key}: shape {shape} of {name} does not fill its {offsets}; download it again")
    return tensor


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)
