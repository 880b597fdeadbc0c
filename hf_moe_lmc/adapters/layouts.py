"""Layouts of experts: each reads an `ExpertBank` out of tensors under module names, and writes it back."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.moe import ExpertBank


@dataclass(frozen=True)
class FusedExperts:
    """Experts in two 3-D tensors, into the units and out of them; perhaps with biases.

    Args:
        name: module name.
        inward: name below the module of the tensor into the units, `[E, 2F, H]` with the rows of gate_proj and up_proj,
            or `[E, F, H]` without gate.
        outward: that of the tensor out of the units, `[E, H, F]`.
        is_gated: whether there is a gate.
        has_bias: whether there are biases `[E, 2F]` or `[E, F]`, and `[E, H]`, called as the tensors, then `_bias`.
        is_transposed: whether the tensors are `[E, H, 2F]` or `[E, H, F]`, and `[E, F, H]`.
        is_interleaved: rows gate, up, gate, up, ... instead of all of gate, then all of up.
    """

    name: str
    inward: str
    outward: str
    is_gated: bool
    has_bias: bool = False
    is_transposed: bool = False
    is_interleaved: bool = False

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Module names of the tensors that `read` reads and `write` writes."""
        suffixes = ("", "_bias") if self.has_bias else ("",)
        return tuple(f"{self.name}.{part}{suffix}" for part in (self.inward, self.outward) for suffix in suffixes)

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """The experts out of tensors under module names, as views."""
        down = self._turned(tensors[f"{self.name}.{self.outward}"])
        # LongCat's zero experts have rows in gate_up_proj only, which nothing reads.
        gate, up = self._split(self._turned(tensors[f"{self.name}.{self.inward}"][: len(down)]))
        gate_bias, up_bias = self._split(tensors[f"{self.name}.{self.inward}_bias"]) if self.has_bias else (None, None)
        return ExpertBank(
            up_proj=up,
            down_proj=down,
            gate_proj=gate,
            up_bias=up_bias,
            gate_bias=gate_bias,
            down_bias=tensors[f"{self.name}.{self.outward}_bias"] if self.has_bias else None,
        )

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """The inverse of `read`."""
        tensors = {
            self.inward: self._turned(self.join(experts.gate_proj, experts.up_proj)),
            self.outward: self._turned(experts.down_proj),
        }
        if experts.up_bias is not None and experts.down_bias is not None:
            tensors[f"{self.inward}_bias"] = self.join(experts.gate_bias, experts.up_bias)
            tensors[f"{self.outward}_bias"] = experts.down_bias
        return {f"{self.name}.{name}": tensor for name, tensor in tensors.items()}

    def join(self, gate: Tensor | None, up: Tensor) -> Tensor:
        """Two tensors along axis 1, of gate_proj's rows and of up_proj's, in the order of `inward`."""
        if gate is None:
            return up
        return torch.stack([gate, up], dim=2).flatten(1, 2) if self.is_interleaved else torch.cat([gate, up], dim=1)

    def _split(self, gate_up: Tensor) -> tuple[Tensor | None, Tensor]:
        if not self.is_gated:
            return None, gate_up
        if self.is_interleaved:
            return gate_up[:, ::2], gate_up[:, 1::2]
        gate, up = gate_up.chunk(2, dim=1)
        return gate, up

    def _turned(self, tensor: Tensor) -> Tensor:
        return tensor.mT if self.is_transposed else tensor


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
        gate, up, down = (tensors[name] for name in self.tensor_names)
        return ExpertBank(up, down, gate_proj=gate)

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """The inverse of `read`."""
        return {f"{self.name}.{part}": tensor for part, tensor in experts.tensors().items()}


@dataclass(frozen=True)
class FlatExperts:
    """Gated experts in 2-D tensors `w1` (gate), `v1` (up) and `w2` (down, transposed), each `[E F, H]` (DBRX)."""

    name: str
    num_experts: int
    is_gated: bool = True

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Module names of the tensors that `read` reads and `write` writes."""
        return tuple(f"{self.name}.{part}" for part in ("w1", "v1", "w2"))

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """The experts out of tensors under module names, as views."""
        gate, up, down = (tensors[name].unflatten(0, (self.num_experts, -1)) for name in self.tensor_names)
        return ExpertBank(up, down.mT, gate_proj=gate)

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """The inverse of `read`."""
        parts = zip(self.tensor_names, (experts.gate_proj, experts.up_proj, experts.down_proj.mT), strict=True)
        return {name: tensor.flatten(0, 1) for name, tensor in parts if tensor is not None}


@dataclass(frozen=True)
class ProductKeyExperts:
    """n^2 experts of one unit each, that two keys choose: expert (i, j) is row `n i + j` of two embeddings (Doge).

    Read as n slots of n units. Rows beyond n^2 are never chosen.

    Args:
        name: module name.
        num_keys: n.
    """

    name: str
    num_keys: int
    is_gated: bool = False

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Module names of the tensors that `read` reads and `write` writes."""
        return (f"{self.name}.down_embed.weight", f"{self.name}.up_embed.weight")

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """The experts out of tensors under module names, as views; `down_embed` leads into a unit, `up_embed` out."""
        n = self.num_keys
        inward, outward = (tensors[name][: n * n].unflatten(0, (n, n)) for name in self.tensor_names)
        return ExpertBank(inward, outward.mT)

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """The inverse of `read`."""
        rows = (experts.up_proj.flatten(0, 1), experts.down_proj.mT.flatten(0, 1))
        return dict(zip(self.tensor_names, rows, strict=True))


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
            down_bias=self._tensor(tensors, self.down, "bias") if self.has_bias else None,
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
            f"{self.name}.{name}": self._turned(tensor.squeeze(0))
            for name, tensor in tensors.items()
            if tensor is not None
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

    @property
    def interchanged(self) -> tuple[tuple[str, ...], ...]:
        """Module names of tensors that change places with each other."""
        return tuple(zip(*(expert.tensor_names for expert in self.experts), strict=True))

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """The experts out of tensors under module names, stacked.

        Raises:
            BadInputError: experts of a live model differ in dtype; one of them would be rounded.
        """
        if any(len({tensors[name].dtype for name in names}) > 1 for names in self.interchanged):
            raise BadInputError(f"experts of {self.name} differ in dtype; convert the model to one")
        banks = [expert.read(tensors).tensors() for expert in self.experts]
        return ExpertBank(**{field: torch.cat([bank[field] for bank in banks]) for field in banks[0]})

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """The inverse of `read`."""
        banks = (experts.map(lambda tensor, e=e: tensor[e : e + 1]) for e in range(len(self.experts)))
        written = [expert.write(bank) for expert, bank in zip(self.experts, banks, strict=True)]
        return {name: tensor for tensors in written for name, tensor in tensors.items()}


@dataclass(frozen=True)
class HeadedMlp:
    """One MLP whose units feed several linears; each input takes the last part of its output from one of the heads.

    VitPose, whose caller names the head. The rows of all heads follow those of the common linear in one down_proj, so
    `D = H + (heads - 1) * head_size`, and a unit is permuted in all of them.

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
        heads = (f"{self.name}.{head}.{kind}" for head in self.heads for kind in ("weight", "bias"))
        return (*self.mlp.tensor_names, *heads)

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """The MLP out of tensors under module names, with E = 1."""
        weights, biases = (
            [tensors[f"{self.name}.{linear}.{kind}"] for linear in (self.mlp.down, *self.heads)]
            for kind in ("weight", "bias")
        )
        bank = self.mlp.read(tensors)
        return replace(bank, down_proj=torch.cat(weights)[None], down_bias=torch.cat(biases)[None])

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """The inverse of `read`."""
        common, written = -len(self.heads) * self.head_size, {}
        first = {name: tensor[:, :common] for name, tensor in experts.tensors().items() if name.startswith("down")}
        for kind, tensor in (("weight", experts.down_proj), ("bias", experts.down_bias)):
            if tensor is not None:
                rows = tensor[0, common:].split(self.head_size)
                written |= {f"{self.name}.{head}.{kind}": own for head, own in zip(self.heads, rows, strict=True)}
        return self.mlp.write(replace(experts, **first)) | written


ExpertLayout = FusedExperts | StackedExperts | FlatExperts | ProductKeyExperts | DenseMlp | ListedExperts | HeadedMlp
