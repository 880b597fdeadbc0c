"""Controls: merges that align nothing, to judge those that do by."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_moe_lmc.adapters import MoeLayerSpec


def shuffled_layers(
    tensors: Mapping[str, Tensor], specs: Sequence[MoeLayerSpec], seed: int = 0
) -> Mapping[str, Tensor]:
    """`tensors` with the entries of every tensor of the layers of `specs` in a random order.

    Weights of the same sizes with nothing to align: whatever lowers the loss of a merge with them is no alignment.
    """
    generator = torch.Generator().manual_seed(seed)

    def shuffled(tensor: Tensor) -> Tensor:
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        return tensor.flatten()[order].reshape(tensor.shape)

    return {**tensors, **{name: shuffled(tensors[name]) for spec in specs for name in spec.tensor_names}}
