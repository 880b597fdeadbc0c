"""An MLP with several linears out of its units, among which the caller of the model chooses."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank

from .mlp_layouts import DenseMlp


@dataclass(frozen=True)
class HeadedMlp:
    """One MLP whose units feed several linears; each input takes the last part of its answer from one of the heads.

    VitPose, whose caller names the head. The rows of all heads follow those of the common linear in one down_proj, so
    `D = H + (heads - 1) * head_size`, and a unit moves in all of them.

    Args:
        mlp: the MLP with the linear that is common to all inputs.
        heads: names of the other linears out of the units.
        head_size: rows of each.
    """

    mlp: DenseMlp
    heads: tuple[str, ...]
    head_size: int

    @property
    def name(self) -> str:
        """Module name."""
        return self.mlp.name

    @property
    def is_gated(self) -> bool:
        """Whether there is a gate."""
        return self.mlp.is_gated

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Module names of the tensors that `read` reads and `write` writes."""
        return (*self.mlp.tensor_names, *(f"{self.name}.{head}.{kind}" for head in self.heads for kind in self._KINDS))

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """The MLP out of tensors under module names, with E = 1."""
        bank = self.mlp.read(tensors)
        weights, biases = (
            [tensors[f"{self.name}.{linear}.{kind}"] for linear in (self.mlp.down, *self.heads)] for kind in self._KINDS
        )
        return replace(bank, down_proj=torch.cat(weights)[None], down_bias=torch.cat(biases)[None])

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """The inverse of `read`."""
        common, written = -len(self.heads) * self.head_size, {}
        first = {name: tensor[:, :common] for name, tensor in experts.tensors().items() if name.startswith("down")}
        for kind, tensor in zip(self._KINDS, (experts.down_proj, experts.down_bias), strict=True):
            if tensor is not None:
                rows = tensor[0, common:].split(self.head_size)
                written |= {f"{self.name}.{head}.{kind}": own for head, own in zip(self.heads, rows, strict=True)}
        return self.mlp.write(replace(experts, **first)) | written

    _KINDS = ("weight", "bias")
