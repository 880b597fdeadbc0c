"""How families store their experts: every layout reads a bank out of tensors under module names, and writes it back."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank

from .headed_mlp import HeadedMlp
from .mlp_layouts import DenseMlp, ListedExperts
from .packed_experts import PackedExperts
from .product_key_experts import ProductKeyExperts


@dataclass(frozen=True)
class FusedExperts:
    """Experts in 3-D tensors: `gate_up_proj` or, not gated, `up_proj`; and `down_proj`; perhaps with biases.

    Args:
        name: module name.
        is_gated: `gate_up_proj` `[E, 2F, H]`, or `up_proj` `[E, F, H]`.
        has_bias: `..._proj_bias` `[E, 2F]` or `[E, F]`, and `[E, H]`.
        is_transposed: `[E, H, 2F]` and `[E, F, H]` instead.
        is_interleaved: rows gate, up, gate, up, ... instead of all of gate, then all of up.
    """

    name: str
    is_gated: bool
    has_bias: bool
    is_transposed: bool = False
    is_interleaved: bool = False

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Module names of the tensors that `read` reads and `write` writes."""
        inward = "gate_up_proj" if self.is_gated else "up_proj"
        suffixes = ("", "_bias") if self.has_bias else ("",)
        return tuple(f"{self.name}.{part}{suffix}" for part in (inward, "down_proj") for suffix in suffixes)

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """The experts out of tensors under module names, as views."""
        inward = "gate_up_proj" if self.is_gated else "up_proj"
        down = self._turned(tensors[f"{self.name}.down_proj"])
        # LongCat's zero experts have rows in gate_up_proj only, which nothing reads.
        gate, up = self._split(self._turned(tensors[f"{self.name}.{inward}"][: len(down)]))
        gate_bias, up_bias = self._split(tensors[f"{self.name}.{inward}_bias"]) if self.has_bias else (None, None)
        return ExpertBank(
            up_proj=up,
            down_proj=down,
            gate_proj=gate,
            up_bias=up_bias,
            gate_bias=gate_bias,
            down_bias=tensors[f"{self.name}.down_proj_bias"] if self.has_bias else None,
        )

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """The inverse of `read`."""
        inward = "gate_up_proj" if self.is_gated else "up_proj"
        tensors = {
            inward: self._turned(self.join(experts.gate_proj, experts.up_proj)),
            "down_proj": self._turned(experts.down_proj),
        }
        if experts.up_bias is not None and experts.down_bias is not None:
            tensors[f"{inward}_bias"] = self.join(experts.gate_bias, experts.up_bias)
            tensors["down_proj_bias"] = experts.down_bias
        return {f"{self.name}.{name}": tensor for name, tensor in tensors.items()}

    def _turned(self, tensor: Tensor) -> Tensor:
        return tensor.mT if self.is_transposed else tensor

    def _split(self, gate_up: Tensor) -> tuple[Tensor | None, Tensor]:
        if not self.is_gated:
            return None, gate_up
        if self.is_interleaved:
            return gate_up[:, ::2], gate_up[:, 1::2]
        gate, up = gate_up.chunk(2, dim=1)
        return gate, up

    def join(self, gate: Tensor | None, up: Tensor) -> Tensor:
        """What belongs to the rows of gate_proj, and of up_proj, in axis 1 -> both in the order of `gate_up_proj`."""
        if gate is None:
            return up
        return torch.stack([gate, up], dim=2).flatten(1, 2) if self.is_interleaved else torch.cat([gate, up], dim=1)


@dataclass(frozen=True)
class FlatExperts:
    """Gated experts in 2-D tensors `w1` (gate), `v1` (up) and `w2` (down, transposed), each `[E F, H]` (DBRX)."""

    name: str
    num_experts: int
    is_gated: bool = True

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Module names of the tensors that `read` reads and `write` writes."""
        return tuple(f"{self.name}.{part}" for part in self._PARTS)

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """The experts out of tensors under module names, as views."""
        gate, up, down = (tensors[f"{self.name}.{part}"].unflatten(0, (self.num_experts, -1)) for part in self._PARTS)
        return ExpertBank(up, down.mT, gate_proj=gate)

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """The inverse of `read`."""
        parts = zip(self._PARTS, (experts.gate_proj, experts.up_proj, experts.down_proj.mT), strict=True)
        return {f"{self.name}.{part}": tensor.flatten(0, 1) for part, tensor in parts if tensor is not None}

    _PARTS = ("w1", "v1", "w2")


@dataclass(frozen=True)
class ParallelExperts:
    """Experts in two 3-D linears, `input_linear` `[E, 2F or F, H]` and `output_linear` `[E, H, F]` (JetMoe).

    Args:
        name: module name.
        is_gated: whether `input_linear` holds the rows of the gate, then the others.
    """

    name: str
    is_gated: bool

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Module names of the tensors that `read` reads and `write` writes."""
        return (f"{self.name}.input_linear.weight", f"{self.name}.output_linear.weight")

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """The experts out of tensors under module names, as views."""
        inward, down = (tensors[name] for name in self.tensor_names)
        if not self.is_gated:
            return ExpertBank(inward, down)
        gate, up = inward.chunk(2, dim=1)
        return ExpertBank(up, down, gate_proj=gate)

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """The inverse of `read`."""
        inward = [tensor for tensor in (experts.gate_proj, experts.up_proj) if tensor is not None]
        return dict(zip(self.tensor_names, (torch.cat(inward, dim=1), experts.down_proj), strict=True))


@dataclass(frozen=True)
class StackedExperts:
    """Gated experts in 3-D `gate_proj`, `up_proj` `[E, F, H]` and `down_proj` `[E, H, F]` (Inkling, shared)."""

    name: str
    is_gated: bool = True

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Module names of the tensors that `read` reads and `write` writes."""
        return tuple(f"{self.name}.{part}" for part in ("gate_proj", "up_proj", "down_proj"))

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """The experts out of tensors under module names, as views."""
        gate, up, down = (tensors[f"{self.name}.{part}"] for part in ("gate_proj", "up_proj", "down_proj"))
        return ExpertBank(up, down, gate_proj=gate)

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """The inverse of `read`."""
        return {f"{self.name}.{part}": tensor for part, tensor in experts.tensors().items()}


ExpertLayout = (
    FusedExperts
    | DenseMlp
    | HeadedMlp
    | FlatExperts
    | ParallelExperts
    | ListedExperts
    | StackedExperts
    | ProductKeyExperts
    | PackedExperts
)
