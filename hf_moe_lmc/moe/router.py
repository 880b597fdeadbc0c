"""The router of one Mixture-of-Experts layer."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.symmetry import Permutation

Scoring = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Router:
    """Scores `s_e(x) = W_e x + b_e` of every expert e for a token x; one row per expert.

    Args:
        weight: W, `[E, H]`.
        bias: b, `[E]`, or None.
        scoring: how scores become routing weights: "softmax" (over all or over the selected experts) or "sigmoid".
    """

    weight: Float[Tensor, "E H"]
    bias: Float[Tensor, " E"] | None = None
    scoring: Scoring = "softmax"

    @property
    def is_translation_invariant(self) -> bool:
        """Whether adding one affine map to all rows changes nothing.

        A softmax and the order of the scores ignore a common shift (arXiv:2509.11348, section 3); a sigmoid does not.
        """
        return self.scoring == "softmax"

    def tensors(self) -> dict[str, Tensor]:
        """Field name -> tensor, absent ones left out."""
        return {"weight": self.weight} if self.bias is None else {"weight": self.weight, "bias": self.bias}

    def map(self, function: Callable[[Tensor], Tensor]) -> "Router":
        """The router with `function` applied to every tensor."""
        return replace(self, **{name: function(tensor) for name, tensor in self.tensors().items()})

    def permute_experts(self, experts: Permutation) -> "Router":
        """The router whose row e is row `experts[e]` of this one."""
        return self.map(lambda tensor: experts.apply(tensor, dim=0))

    def centred(self) -> "Router":
        """The translate with zero mean over experts; itself where translation is not a symmetry.

        The distance of two centred routers is the least distance over all translations of either.
        """
        if not self.is_translation_invariant:
            return self
        return self.map(lambda tensor: tensor - tensor.mean(dim=0))
