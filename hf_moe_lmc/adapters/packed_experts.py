"""Experts of a quantised checkpoint: whole experts move, whatever the format; inside them nothing is read."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank
from hf_moe_lmc.symmetry import Permutation


@dataclass(frozen=True)
class PackedExperts:
    """Experts that are moved with all that is stored of each: codes, scales, zero points, whatever it means.

    Args:
        name: module name.
        num_experts: E.
        stacked: names of tensors `[E, ...]`.
        listed: names of tensors of one expert each, E to a kind, such as `gate_proj.weight_scale_inv`.
    """

    name: str
    num_experts: int
    stacked: tuple[str, ...]
    listed: tuple[tuple[str, ...], ...]

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of the tensors that `permute` moves."""
        return (*self.stacked, *(name for names in self.listed for name in names))

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """E experts without units: none can be told from another here."""
        return ExpertBank(torch.empty(self.num_experts, 0, 0), torch.empty(self.num_experts, 0, 0))

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """Nothing; see `permute`."""
        return {}

    def permute(self, order: Permutation, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors in which slot e holds expert `order[e]` of `tensors`; bytes move, nothing is computed."""
        index = order.index.tolist()
        moved = {name: torch.stack([tensors[name][expert] for expert in index]) for name in self.stacked}
        for names in self.listed:
            moved |= {name: tensors[names[expert]] for name, expert in zip(names, index, strict=True)}
        return moved
