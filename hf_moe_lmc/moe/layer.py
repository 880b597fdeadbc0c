"""One Mixture-of-Experts layer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .expert_bank import ExpertBank
from .router import Router


@dataclass(frozen=True)
class MoeLayer:
    """A router, the experts it chooses from, and the shared experts that every token passes.

    Args:
        router: one row per expert.
        experts: the routed experts.
        shared_experts: the always-active experts (DeepSeekMoE), or None.
    """

    router: Router
    experts: ExpertBank
    shared_experts: ExpertBank | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the layer under names such as `router.weight` and `shared_experts.down_proj`."""
        parts = {"router": self.router, "experts": self.experts, "shared_experts": self.shared_experts}
        return {
            f"{part}.{name}": tensor
            for part, owner in parts.items()
            if owner is not None
            for name, tensor in owner.tensors().items()
        }

    def to(self, dtype: torch.dtype) -> "MoeLayer":
        """The layer in another dtype; tensors that have it already are not copied."""

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(dtype)

        shared = self.shared_experts
        return MoeLayer(self.router.map(cast), self.experts.map(cast), shared.map(cast) if shared else None)

    @property
    def symmetry_shape(self) -> tuple[int, int, tuple[int, int] | None]:
        """(E, F, (S, F') or None): the arguments that `MoeSymmetry.identity` and its kin take for this layer."""
        shared = self.shared_experts
        return (
            self.experts.num_experts,
            self.experts.num_units,
            None if shared is None else (shared.num_experts, shared.num_units),
        )
