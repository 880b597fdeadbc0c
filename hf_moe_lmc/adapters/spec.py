"""Where one Mixture-of-Experts layer lives, and how to read and write it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.moe import ExpertBank, MoeLayer, Router, SymmetryGroup


@dataclass(frozen=True)
class RouterSpec:
    """A router: names of its tensors, whose axis of experts is the last of `[.., E]` and the first of `[E, H]`.

    Args:
        tensors: (field of `Router`, module name of the tensor).
    """

    tensors: tuple[tuple[str, str], ...]

    def read(self, tensors: Mapping[str, Tensor]) -> Router:
        """The router out of tensors under module names."""
        weight = tensors[dict(self.tensors)["weight"]]
        # Ernie stores its selection biases as [1, E].
        return Router(
            **{
                field: weight if field == "weight" else tensors[name].reshape(len(weight))
                for field, name in self.tensors
            }
        )

    def write(self, router: Router) -> dict[str, Tensor]:
        """The inverse of `read`, but for axes of length 1."""
        return {name: router.tensors()[field] for field, name in self.tensors}


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

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """The experts out of tensors under module names, as views."""
        inward = "gate_up_proj" if self.is_gated else "up_proj"
        gate, up = self._split(self._turned(tensors[f"{self.name}.{inward}"]))
        gate_bias, up_bias = self._split(tensors[f"{self.name}.{inward}_bias"]) if self.has_bias else (None, None)
        return ExpertBank(
            up_proj=up,
            down_proj=self._turned(tensors[f"{self.name}.down_proj"]),
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
class MoeLayerSpec:
    """Where one layer lives in the module tree, how to read and write it, and what leaves its function unchanged.

    Args:
        name: module name of the block, such as `model.layers.3.mlp`.
        router, experts, shared_experts: its parts.
        group: the symmetries that it admits.
    """

    name: str
    router: RouterSpec
    experts: FusedExperts
    shared_experts: SharedMlp | None
    group: SymmetryGroup

    def read(self, tensors: Mapping[str, Tensor]) -> MoeLayer:
        """The layer out of tensors under module names (a state dict, or a lazily read checkpoint).

        Raises:
            BadInputError: a tensor is missing.
        """
        try:
            return MoeLayer(
                self.router.read(tensors),
                self.experts.read(tensors),
                self.shared_experts.read(tensors) if self.shared_experts else None,
                self.group,
            )
        except KeyError as error:
            raise BadInputError(f"layer {self.name}: tensor {error.args[0]} is missing") from None

    def write(self, layer: MoeLayer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The layer's tensors under module names, in the shapes that they have in `tensors`; the inverse of `read`."""
        written = self.router.write(layer.router) | self.experts.write(layer.experts)
        if self.shared_experts and layer.shared_experts:
            written |= self.shared_experts.write(layer.shared_experts)
        return {name: tensor.reshape(tensors[name].shape) for name, tensor in written.items()}
