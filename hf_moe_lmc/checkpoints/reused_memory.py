"""Memory that one read after the other fills anew."""

from collections.abc import Mapping

import torch
from torch import Tensor

ALIGNMENT = 64


class ReusedMemory:
    """Room for the tensors of one step at a time, kept from step to step.

    Fresh memory costs about as much as reading a file into it, for the system must clear it first.
    """

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def place(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Uninitialised tensors like `tensors`, which may be on the meta device; those placed before lose theirs."""
        starts, size = {}, 0
        for name, tensor in tensors.items():
            starts[name] = size
            size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        if len(self._bytes) < size:
            self._bytes = torch.empty(size, dtype=torch.uint8)
        return {
            name: self._bytes[starts[name] : starts[name] + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for name, tensor in tensors.items()
        }
