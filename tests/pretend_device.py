"""A device that this machine lacks: tensors that are computed on the CPU, and refuse all that a real device refuses.

It goes by the name of "meta", the one device that every build of torch knows. Within `pretend_device()` whatever is
made there has values. An operation on tensors of both devices raises, and so does `numpy()` that is not
forced.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

PRETENDED = torch.device("meta")
CROSSING = ("aten::_to_copy", "aten::copy_")


class _There(Tensor):
    """A tensor of the pretended device; its values are those of `here`."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "_There":
        there = Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=PRETENDED
        )
        there.here = here
        return there

    __torch_function__ = torch._C._disabled_torch_function_impl

    def numpy(self, *, force: bool = False) -> np.ndarray:
        if not force:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy")
        return self.here.numpy(force=True)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Pretending(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """Within, the device that it gives exists, for this thread only, so operations and experts get no other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _Pretending():
            yield PRETENDED
    finally:
        torch.set_num_threads(threads)


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, _There)]
    here = [tensor for tensor in tensors if not isinstance(tensor, _There) and tensor.ndim]  # a number goes anywhere
    if there and here and function.name() not in CROSSING:
        raise RuntimeError(f"{function.name()}: expected all tensors to be on the same device")
    device = kwargs.get("device")
    made_there = bool(there) if device is None else torch.device(device) == PRETENDED
    args, kwargs = tree_map(lambda value: value.here if isinstance(value, _There) else value, (args, kwargs))
    if device is not None:
        kwargs["device"] = "cpu"
    found = function(*args, **kwargs)
    return tree_map(lambda value: _There(value) if isinstance(value, Tensor) else value, found) if made_there else found
