"""Where layers are matched, and within how much memory."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.moe import ExpertBank

from .opened_model import OpenedModel

TILE_BYTES = 2**28  # tiles of Gram matrices, blocks of rows, and what the solvers need beside their matrix


@dataclass(frozen=True)
class Resources:
    """Where layers are matched, and within how much memory.

    Args:
        device: of torch, such as "cpu" or "cuda:1"; None is this process's GPU where there is one with room for the
            largest layer, and else the CPU.
        memory: so many bytes at most for one layer of both models and all that is computed from it, `matching_bytes`;
            None is no limit.
    """

    device: str | torch.device | None = None
    memory: int | None = None

    def device_for(self, needed: Mapping[str, int]) -> torch.device:
        """The device on which layers are matched that need so many bytes each, by layer name.

        Raises:
            BadInputError: a layer needs more than `memory`, or there is no such device.
        """
        largest = max(needed, key=lambda name: needed[name])
        if self.memory is not None and needed[largest] > self.memory:
            raise BadInputError(
                f"layer {largest}: matching it needs {needed[largest] / 1e9:.3g} GB, more than the "
                f"{self.memory / 1e9:.3g} GB that it may take; allow more memory, or fewer --threads"
            )
        if self.device is not None:
            return _existing(self.device)
        # Of other accelerators, some lack float64.
        if torch.cuda.is_available() and needed[largest] <= torch.cuda.mem_get_info()[0]:
            return torch.device("cuda", torch.cuda.current_device())  # Accelerate gives every process its own
        return torch.device("cpu")


def matching_bytes(reference: OpenedModel, other: OpenedModel) -> dict[str, int]:
    """Layer name -> an upper estimate of the bytes that matching it needs; nothing is read.

    Both layers as they are stored, and for every worker (`hf_moe_lmc.workers`) the units of three experts, and four
    matrices of their similarities, in float32 or better.
    """
    sides = [side.on_meta for side in (reference, other)]
    needed = {}
    for specs in zip(reference.all_layers, other.all_layers, strict=True):
        parts = [_layer_bytes(spec, tensors) for spec, tensors in zip(specs, sides, strict=True)]
        layer = specs[0].read(sides[0])
        width = 8 if torch.float64 in (tensor.dtype for tensor in layer.tensors().values()) else 4
        banks = [bank for bank in (layer.experts, layer.shared_experts) if bank]
        pair = max(3 * _numel(bank) // bank.num_experts + 4 * bank.num_units**2 for bank in banks) * width
        # One pair of experts, or tensor, for each.
        workers = min(torch.get_num_threads(), max(bank.num_experts for bank in banks))
        needed[specs[0].name] = sum(parts) + workers * pair + TILE_BYTES
    return needed


def _layer_bytes(spec: MoeLayerSpec, tensors: Mapping[str, Tensor]) -> int:
    """A layer as it is stored, and what reading it copies."""
    own = [tensors[name] for name in spec.tensor_names]
    owned = {tensor.untyped_storage()._cdata for tensor in own}
    read = spec.read(tensors).tensors().values()
    return sum(t.nbytes for t in own) + sum(t.nbytes for t in read if t.untyped_storage()._cdata not in owned)


def _numel(bank: ExpertBank) -> int:
    return sum(tensor.numel() for tensor in bank.tensors().values())


def _existing(device: str | torch.device) -> torch.device:
    try:
        found = torch.empty(1, device=device)
        found.item()  # of some that can be named, such as meta, nothing comes back
    except Exception as error:  # every backend that is not there has a way of its own to say so
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise BadInputError(f"{device} is no device that computes here: {reason}; give another, such as cpu") from None
    return found.device
