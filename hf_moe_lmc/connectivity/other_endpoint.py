"""The other end of a path: held on the device, in host memory, or read from disk at every point."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from .live_weights import Beside, Kept, LiveWeights

Place = Literal["device", "host memory", "disk"]


def beside(tensors: Mapping[str, Tensor], weights: LiveWeights, place: Place) -> Mapping[str, Tensor]:
    """`tensors` on the devices of `weights`, from where they are held; the values do not depend on it.

    Args:
        tensors: of a checkpoint, which reads them when asked for.
        weights: of the model that takes the points of the path.
        place: where they are kept once they are read; "disk" keeps none.
    """
    if place == "device":
        return Kept(Beside(tensors, weights))
    return Beside(Kept(tensors) if place == "host memory" else tensors, weights)


def place_for(size: int, weights: LiveWeights, memory: int) -> Place:
    """Where an end of `size` bytes is held that may take `memory` bytes.

    On a GPU where half of what is free holds it and the copy that is made of the model's own weights: the rest is for
    what evaluation computes. On the CPU, "device" and "host memory" are the same.
    """
    if size > memory:
        return "disk"
    devices = {tensor.device for tensor in weights.resident.values()}
    if len(devices) == 1 and not weights.offloaded and (device := devices.pop()).type == "cuda":
        own = sum(tensor.nbytes for tensor in weights.resident.values())
        if 2 * (size + own) <= torch.cuda.mem_get_info(device)[0]:
            return "device"
    return "host memory"
