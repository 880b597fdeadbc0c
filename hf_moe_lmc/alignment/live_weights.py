"""The weights of a live model: read, replaced for a while, and restored; those that Accelerate offloads included."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from accelerate.hooks import AlignDevicesHook
from accelerate.utils import named_module_tensors
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.workers import one_thread_per_operation

from .weights import DerivedWeights, Weights


class LiveWeights(Mapping[str, Tensor]):
    """The weights of a model under module names, wherever they are: on its devices, in host memory or on disk.

    As `model.state_dict()`, which shows the offloaded weights of a model loaded with `device_map` as meta tensors.
    Tensors on the model's devices are views; offloaded ones are read when asked for.

    Args:
        model: the model.
        resident: its tensors on devices.
        offloaded: module name of an offloaded tensor -> the map and the key to read it from.
    """

    def __init__(self, model: nn.Module):
        state, hooks = model.state_dict(), list(_offloading_hooks(model))
        self.offloaded = {prefix + key: (hook.weights_map, key) for prefix, hook, keys in hooks for key in keys}
        self.resident = {name: tensor for name, tensor in state.items() if name not in self.offloaded}
        self._names = tuple(state)
        if skeleton := [name for name, tensor in self.resident.items() if tensor.is_meta]:
            raise BadInputError(f"tensor {skeleton[0]} has no data; load the model's weights first")

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.offloaded:
            return self.resident[name]
        tensors, key = self.offloaded[name]
        return tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class OnDevice(DerivedWeights):
    """`base`, each tensor brought when asked for to the device where the model of `weights` has its own.

    Offloaded weights have their place in host memory.
    """

    def __init__(self, base: Weights, weights: LiveWeights):
        super().__init__(base)
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        own = self._weights.resident.get(name)
        return self.base[name].to("cpu" if own is None else own.device)


class Cached(DerivedWeights):
    """`base`, each tensor of which is asked for once and then kept."""

    def __init__(self, base: Weights):
        super().__init__(base)
        self._kept = dict[str, Tensor]()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._kept:
            self._kept[name] = self.base[name]
        return self._kept[name]


class SavedWeights(LiveWeights):
    """The weights that `model` had, while others are loaded into it; see `temporarily_loaded`.

    Args:
        model: has other weights in the meantime.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.model = model
        self._hooks = list(_offloading_hooks(model))
        self._live = self.resident
        self.resident = {name: tensor.clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def load(self, weights: Weights) -> None:
        """Give the model `weights`: those on devices are overwritten, offloaded ones are taken from it when needed."""
        for name, tensor in self._live.items():
            tensor.copy_(weights[name])
        for prefix, hook, _ in self._hooks:
            hook.weights_map = _Prefixed(weights, prefix)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the model its own weights again."""
        for name, tensor in self._live.items():
            tensor.copy_(self.resident[name])
        for prefix, hook, keys in self._hooks:
            for key in keys[:1]:
                hook.weights_map, _ = self.offloaded[prefix + key]


@contextmanager
def temporarily_loaded(model: PreTrainedModel) -> Iterator[SavedWeights]:
    """Within, `model` can be given other weights; afterwards it has its own again, bit for bit.

    The weights on devices are kept twice meanwhile; offloaded ones stay where they are, and no file is written.
    """
    weights = SavedWeights(model)
    try:
        yield weights
    finally:
        weights.restore()


@torch.no_grad()
@one_thread_per_operation()
def load_into(model: nn.Module, weights: Weights) -> None:
    """Give `model`, which is not offloaded, `weights` for good; tied tensors are written once."""
    # Of the names of a tied tensor the first.
    own = dict({tensor.data_ptr(): (name, tensor) for name, tensor in reversed(model.state_dict().items())}.values())
    for name, tensor in reversed(own.items()):
        tensor.copy_(weights[name])


Placement = Literal["device", "host memory", "disk"]


def placed(tensors: Weights, weights: LiveWeights, placement: Placement) -> Weights:
    """`tensors` on the devices of `weights`, from where they are held; the values do not depend on it.

    Args:
        tensors: of a checkpoint, which reads them when asked for.
        weights: of the model that takes the points of a path.
        placement: where they are kept once they are read; "disk" keeps none.
    """
    if placement == "device":
        return Cached(OnDevice(tensors, weights))
    return OnDevice(Cached(tensors) if placement == "host memory" else tensors, weights)


def placement_for(size: int, weights: LiveWeights, memory: int) -> Placement:
    """Where an endpoint of `size` bytes is held that may take `memory` bytes.

    On a GPU where half of what is free holds it and the copy that is made of the model's own weights: the rest is for
    the evaluation itself. On the CPU, "device" and "host memory" are the same.
    """
    if size > memory:
        return "disk"
    devices = {tensor.device for tensor in weights.resident.values()}
    if len(devices) == 1 and not weights.offloaded and (device := devices.pop()).type == "cuda":
        own = sum(tensor.nbytes for tensor in weights.resident.values())
        if 2 * (size + own) <= torch.cuda.mem_get_info(device)[0]:
            return "device"
    return "host memory"


class _Prefixed(Mapping[str, Tensor]):
    """The tensors of `weights` whose names begin with `prefix`, under the rest of their names."""

    def __init__(self, weights: Weights, prefix: str):
        self._weights, self._prefix = weights, prefix

    def __getitem__(self, key: str) -> Tensor:
        return self._weights[self._prefix + key]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._weights if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _offloading_hooks(model: nn.Module) -> Iterator[tuple[str, Any, list[str]]]:
    """Module name with its dot, hook, and names below the module, of all that Accelerate offloads."""
    for name, module in model.named_modules():
        outer = getattr(module, "_hf_hook", None)
        for hook in getattr(outer, "hooks", [outer]):
            if isinstance(hook, AlignDevicesHook) and hook.offload and hook.weights_map is not None:
                held = named_module_tensors(
                    module, hook.offload_buffers, recurse=hook.place_submodules, remove_non_persistent=True
                )
                if keys := [key for key, _ in held]:
                    yield f"{name}." if name else "", hook, keys
