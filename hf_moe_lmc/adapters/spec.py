"""Where one Mixture-of-Experts layer lives, and how to read and write it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.moe import ExpertBank, MoeLayer, Router, Scoring


@dataclass(frozen=True)
class RouterSpec:
    """A router stored as `{name}.weight` `[E, H]` and, with `has_bias`, `{name}.bias` `[E]`."""

    name: str
    scoring: Scoring
    has_bias: bool

    def read(self, tensors: Mapping[str, Tensor]) -> Router:
        """The router out of tensors under module names."""
        bias = tensors[f"{self.name}.bias"] if self.has_bias else None
        return Router(tensors[f"{self.name}.weight"], bias, self.scoring)

    def write(self, router: Router) -> dict[str, Tensor]:
        """The inverse of `read`."""
        return _present({f"{self.name}.weight": router.weight, f"{self.name}.bias": router.bias})


@dataclass(frozen=True)
class FusedExperts:
    """Experts in 3-D tensors: `gate_up_proj` `[E, 2F, H]` if gated, else `up_proj` `[E, F, H]`; and `down_proj`."""

    name: str
    is_gated: bool
    has_bias: bool

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """The experts out of tensors under module names, as views."""
        down = tensors[f"{self.name}.down_proj"]
        if self.is_gated:
            gate, up = tensors[f"{self.name}.gate_up_proj"].chunk(2, dim=1)
            return ExpertBank(up, down, gate_proj=gate)
        up = tensors[f"{self.name}.up_proj"]
        if not self.has_bias:
            return ExpertBank(up, down)
        up_bias, down_bias = tensors[f"{self.name}.up_proj_bias"], tensors[f"{self.name}.down_proj_bias"]
        return ExpertBank(up, down, up_bias=up_bias, down_bias=down_bias)

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """The inverse of `read`."""
        if experts.gate_proj is not None:
            inward = {f"{self.name}.gate_up_proj": torch.cat([experts.gate_proj, experts.up_proj], dim=1)}
        else:
            inward = {f"{self.name}.up_proj": experts.up_proj}
        outward = {
            f"{self.name}.up_proj_bias": experts.up_bias,
            f"{self.name}.down_proj": experts.down_proj,
            f"{self.name}.down_proj_bias": experts.down_bias,
        }
        return inward | _present(outward)


@dataclass(frozen=True)
class SharedMlp:
    """Shared experts as one wide MLP of linears `up_proj`, `down_proj` and, if gated, `gate_proj`."""

    name: str
    is_gated: bool
    has_bias: bool

    def read(self, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """The shared experts out of tensors under module names, as views with E = 1."""

        def stacked(tensor: str) -> Tensor:
            return tensors[f"{self.name}.{tensor}"][None]

        return ExpertBank(
            up_proj=stacked("up_proj.weight"),
            down_proj=stacked("down_proj.weight"),
            gate_proj=stacked("gate_proj.weight") if self.is_gated else None,
            up_bias=stacked("up_proj.bias") if self.has_bias else None,
            down_bias=stacked("down_proj.bias") if self.has_bias else None,
        )

    def write(self, experts: ExpertBank) -> dict[str, Tensor]:
        """The inverse of `read`."""
        stacked = {
            f"{self.name}.up_proj.weight": experts.up_proj,
            f"{self.name}.down_proj.weight": experts.down_proj,
            f"{self.name}.gate_proj.weight": experts.gate_proj,
            f"{self.name}.up_proj.bias": experts.up_bias,
            f"{self.name}.down_proj.bias": experts.down_bias,
        }
        return {name: tensor[0] for name, tensor in _present(stacked).items()}


@dataclass(frozen=True)
class MoeLayerSpec:
    """Where one layer lives in the module tree, and how to read and write it.

    Args:
        name: module name of the block, such as `model.layers.3.mlp`.
        router, experts, shared_experts: its parts.
    """

    name: str
    router: RouterSpec
    experts: FusedExperts
    shared_experts: SharedMlp | None = None

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
            )
        except KeyError as error:
            raise BadInputError(f"layer {self.name}: tensor {error.args[0]} is missing") from None

    def write(self, layer: MoeLayer) -> dict[str, Tensor]:
        """The layer's tensors under module names; the inverse of `read`."""
        tensors = self.router.write(layer.router) | self.experts.write(layer.experts)
        if self.shared_experts and layer.shared_experts:
            tensors |= self.shared_experts.write(layer.shared_experts)
        return tensors


def _present(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}
