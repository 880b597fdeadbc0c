"""Experts as MLPs of linears: how one MLP, or a list of them, is read out of tensors under module names."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank


@dataclass(frozen=True)
class DenseMlp:
    """One MLP of linears: a dense layer, shared experts as one wide MLP, or one expert of a list.

    Args:
        name: module name.
        up, down: names of the linears into and out of the units.
        gate: name of the gate's linear; equal to `up` where one linear holds the gate's rows, then the others; None
            without a gate.
        has_bias: whether the linears have biases.
        is_transposed: whether they hold `[in, out]` (GPT-2's Conv1D).
    """

    name: str
    up: str
    down: str
    gate: str | None
    has_bias: bool
    is_transposed: bool = False

    @property
    def is_gated(self) -> bool:
        """Whether there is a gate."""
        return self.gate is not None

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Module names of the tensors that `read` reads and `write` writes."""
        linears = dict.fromkeys(linear for linear in (self.gate, self.up, self.down) if linear)
        kinds = ("weight", "bias") if self.has_bias else ("weight",)
        return tuple(f"{self.name}.{linear}.{kind}" for linear in linears for kind in kinds)

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """The MLP out of tensors under module names, as views with E = 1."""
        gate, up = self._inward(tensors, "weight")
        gate_bias, up_bias = self._inward(tensors, "bias") if self.has_bias else (None, None)
        return ExpertBank(
            up_proj=up,
            down_proj=self._tensor(tensors, self.down, "weight"),
            gate_proj=gate,
            up_bias=up_bias,
            gate_bias=gate_bias,
            down_bias=tensors[f"{self.name}.{self.down}.bias"][None] if self.has_bias else None,
        )

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """The inverse of `read`."""
        tensors = {f"{self.down}.weight": experts.down_proj, f"{self.down}.bias": experts.down_bias}
        for kind, gate, up in (
            ("weight", experts.gate_proj, experts.up_proj),
            ("bias", experts.gate_bias, experts.up_bias),
        ):
            if gate is not None and up is not None and self.gate == self.up:
                tensors[f"{self.up}.{kind}"] = torch.cat([gate, up], dim=1)
            else:
                tensors |= {f"{self.gate}.{kind}": gate, f"{self.up}.{kind}": up}
        return {
            f"{self.name}.{name}": self._turned(tensor[0]) for name, tensor in tensors.items() if tensor is not None
        }

    def _inward(self, tensors: Mapping[str, Tensor], kind: str) -> tuple[Tensor | None, Tensor]:
        up = self._tensor(tensors, self.up, kind)
        if self.gate is None:
            return None, up
        if self.gate == self.up:
            gate, up = up.chunk(2, dim=1)
            return gate, up
        return self._tensor(tensors, self.gate, kind), up

    def _tensor(self, tensors: Mapping[str, Tensor], linear: str, kind: str) -> Tensor:
        return self._turned(tensors[f"{self.name}.{linear}.{kind}"])[None]

    def _turned(self, tensor: Tensor) -> Tensor:
        return tensor.T if self.is_transposed and tensor.ndim == 2 else tensor


@dataclass(frozen=True)
class ListedExperts:
    """One MLP per expert (Switch Transformers).

    Args:
        name: module name.
        experts: the MLPs in the order of experts, alike but for their names.
    """

    name: str
    experts: tuple[DenseMlp, ...]

    @property
    def is_gated(self) -> bool:
        """Whether there is a gate."""
        return self.experts[0].is_gated

    @property
    def has_bias(self) -> bool:
        """Whether the linears have biases."""
        return self.experts[0].has_bias

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Module names of the tensors that `read` reads and `write` writes."""
        return tuple(name for expert in self.experts for name in expert.tensor_names)

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """The experts out of tensors under module names, stacked."""
        banks = [expert.read(tensors).tensors() for expert in self.experts]
        return ExpertBank(**{field: torch.cat([bank[field] for bank in banks]) for field in banks[0]})

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """The inverse of `read`."""
        banks = (experts.map(lambda tensor, e=e: tensor[e : e + 1]) for e in range(len(self.experts)))
        written = [expert.write(bank) for expert, bank in zip(self.experts, banks, strict=True)]
        return {name: tensor for tensors in written for name, tensor in tensors.items()}
