"""How families store their experts: every layout reads a bank out of tensors under module names, and writes it back."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank


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
            inward: self._turned(self._joined(experts.gate_proj, experts.up_proj)),
            "down_proj": self._turned(experts.down_proj),
        }
        if experts.up_bias is not None and experts.down_bias is not None:
            tensors[f"{inward}_bias"] = self._joined(experts.gate_bias, experts.up_bias)
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

    def _joined(self, gate: Tensor | None, up: Tensor) -> Tensor:
        if gate is None:
            return up
        return torch.stack([gate, up], dim=2).flatten(1, 2) if self.is_interleaved else torch.cat([gate, up], dim=1)


@dataclass(frozen=True)
class SharedMlp:
    """Shared experts as one wide MLP of linears.

    Args:
        name: module name.
        up, down: names of the linears into and out of the units.
        gate: name of the gate's linear; equal to `up` where one linear holds the gate's rows, then the others; None
            without a gate.
        has_bias: whether the linears have biases.
    """

    name: str
    up: str
    down: str
    gate: str | None
    has_bias: bool

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
        """The shared experts out of tensors under module names, as views with E = 1."""
        gate, up = self._inward(tensors, "weight")
        gate_bias, up_bias = self._inward(tensors, "bias") if self.has_bias else (None, None)
        return ExpertBank(
            up_proj=up,
            down_proj=tensors[f"{self.name}.{self.down}.weight"][None],
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
        return {f"{self.name}.{name}": tensor[0] for name, tensor in tensors.items() if tensor is not None}

    def _inward(self, tensors: Mapping[str, Tensor], kind: str) -> tuple[Tensor | None, Tensor]:
        up = tensors[f"{self.name}.{self.up}.{kind}"][None]
        if self.gate is None:
            return None, up
        if self.gate == self.up:
            gate, up = up.chunk(2, dim=1)
            return gate, up
        return tensors[f"{self.name}.{self.gate}.{kind}"][None], up


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
    """Gated experts in two 3-D linears, `input_linear` `[E, 2F, H]` and `output_linear` `[E, H, F]` (JetMoe)."""

    name: str
    is_gated: bool = True

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Module names of the tensors that `read` reads and `write` writes."""
        return (f"{self.name}.input_linear.weight", f"{self.name}.output_linear.weight")

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """The experts out of tensors under module names, as views."""
        gate, up = tensors[f"{self.name}.input_linear.weight"].chunk(2, dim=1)
        return ExpertBank(up, tensors[f"{self.name}.output_linear.weight"], gate_proj=gate)

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """The inverse of `read`."""
        inward = [tensor for tensor in (experts.gate_proj, experts.up_proj) if tensor is not None]
        return {
            f"{self.name}.input_linear.weight": torch.cat(inward, dim=1),
            f"{self.name}.output_linear.weight": experts.down_proj,
        }


@dataclass(frozen=True)
class ListedExperts:
    """One module `expert_0`, `expert_1`, ... per expert, of linears `wi` (up) and `wo` (down) (Switch Transformers)."""

    name: str
    num_experts: int
    is_gated: bool = False

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Module names of the tensors that `read` reads and `write` writes."""
        return (*self._names("wi"), *self._names("wo"))

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """The experts out of tensors under module names, stacked."""
        up, down = (torch.stack([tensors[name] for name in self._names(part)]) for part in ("wi", "wo"))
        return ExpertBank(up, down)

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """The inverse of `read`."""
        up = zip(self._names("wi"), experts.up_proj, strict=True)
        return dict([*up, *zip(self._names("wo"), experts.down_proj, strict=True)])

    def _names(self, part: str) -> list[str]:
        return [f"{self.name}.expert_{e}.{part}.weight" for e in range(self.num_experts)]


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


ExpertLayout = FusedExperts | SharedMlp | FlatExperts | ParallelExperts | ListedExperts | StackedExperts
