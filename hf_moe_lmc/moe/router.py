"""The router of one Mixture-of-Experts layer."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.symmetry import Permutation


@dataclass(frozen=True)
class Router:
    """Scores `s_e(x) = W_e x + b_e` of every expert e for a token x, and all else that belongs to an expert by number.

    Args:
        weight: W, `[E, H]`.
        bias: b, `[E]`, or None.
        selection_bias: added to the scores for the choice of experts only (`e_score_correction_bias` and its kin),
            `[E]`, or None.
        per_expert_scale: a factor of each expert's routing weight, `[E]`, or None.
    """

    weight: Float[Tensor, "E H"]
    bias: Float[Tensor, " E"] | None = None
    selection_bias: Float[Tensor, " E"] | None = None
    per_expert_scale: Float[Tensor, " E"] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Field name -> tensor, absent ones left out."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def rows(self) -> Float[Tensor, "E d"]:
        """All that belongs to an expert, one row each."""
        return torch.cat([tensor.reshape(len(tensor), -1) for tensor in self.tensors().values()], dim=1)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Router":
        """The router with `function` applied to every tensor."""
        return replace(self, **{name: function(tensor) for name, tensor in self.tensors().items()})

    def permute_experts(self, experts: Permutation) -> "Router":
        """The router whose row e is row `experts[e]` of this one."""
        return self.map(lambda tensor: experts.apply(tensor, dim=0))
