"""The straight line between two layers."""

from functools import reduce

import torch

from hf_moe_lmc.errors import IncompatiblePairError
from hf_moe_lmc.moe import MoeLayer

from .interpolation import interpolate_tensor


def interpolate_layers(reference: MoeLayer, other: MoeLayer, t: float) -> MoeLayer:
    """`(1 - t) reference + t other`, in the dtype of the layers, which should be float32 or better.

    Raises:
        IncompatiblePairError: a shape differs, or a table of experts by token number does.
    """
    a, b = (layer.router.expert_table if layer.router else None for layer in (reference, other))
    if (a is None) != (b is None) or (a is not None and b is not None and not torch.equal(a, b.to(a.device))):
        raise IncompatiblePairError("the tables of experts by token number differ and cannot be interpolated")
    others = other.tensors()
    return reference.with_tensors(
        {name: interpolate_tensor(name, tensor, others[name], t) for name, tensor in reference.tensors().items()}
    )


def widest_dtype(*layers: MoeLayer) -> torch.dtype:
    """The dtype to compute with: the widest of all tensors, at least float32."""
    dtypes = (tensor.dtype for layer in layers for tensor in layer.tensors().values())
    return reduce(torch.promote_types, dtypes, torch.float32)
