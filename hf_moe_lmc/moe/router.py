"""The router of one Mixture-of-Experts layer."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
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
        expert_table: for routing by token number, the numbers of the K experts of each of V tokens, `[V, K]`, or None.
    """

    weight: Float[Tensor, "E H"]
    bias: Float[Tensor, " E"] | None = None
    selection_bias: Float[Tensor, " E"] | None = None
    per_expert_scale: Float[Tensor, " E"] | None = None
    expert_table: Int[Tensor, "V K"] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Field name -> tensor with a row or entry per expert, absent ones left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "expert_table"}
        return {name: tensor for name, tensor in values.items() if tensor is not None}

    def rows(self) -> Float[Tensor, "E d"]:
        """All that belongs to an expert, one row per expert."""
        return torch.cat([tensor.reshape(len(tensor), -1) for tensor in self.tensors().values()], dim=1)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Router":
        """The router with `function` applied to all of `tensors()`."""
        return replace(self, **{name: function(tensor) for name, tensor in self.tensors().items()})

    def normalised(self) -> "Router":
        """The positive multiple of weight and bias whose norm is 1; the router itself where both are zero."""
        bias = self.weight.new_zeros(1) if self.bias is None else self.bias
        norm = torch.cat([self.weight.flatten(), bias]).norm()
        if norm == 0:
            return self
        return replace(self, weight=self.weight / norm, bias=None if self.bias is None else self.bias / norm)

    def permute_experts(self, experts: Permutation) -> "Router":
        """The router whose row e is row `experts[e]` of this one; its table names the experts by their new slots."""
        permuted = self.map(lambda tensor: experts.apply(tensor, dim=0))
        if self.expert_table is None:
            return permuted
        slots = experts.inverse().index.to(self.expert_table)
        return replace(permuted, expert_table=slots[self.expert_table])
