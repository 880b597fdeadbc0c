"""Activation statistics of one layer on calibration data: the hidden states that reach it, and who takes them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from hf_moe_lmc.moe import ExpertBank

PRIOR_TOKENS = 64

Activation = Callable[[Float[Tensor, "N F"] | None, Float[Tensor, "N F"]], Float[Tensor, "N F"]]
"""Outputs of gate_proj (if any) and of up_proj -> units."""


@dataclass(frozen=True)
class ExpertStatistics:
    """Hidden states at the experts of one bank, and their weight in the statistics of each expert.

    Args:
        tokens: hidden states, `[N, H]`.
        weights: of every token in the statistics of every expert, `[N, E]`; columns have sum 1.
        activation: of the experts.
    """

    tokens: Float[Tensor, "N H"]
    weights: Float[Tensor, "N E"]
    activation: Activation

    def expert(self, e: int) -> "ExpertStatistics":
        """Those of expert e alone."""
        return replace(self, weights=self.weights[:, e : e + 1])

    def outputs(self, bank: ExpertBank, e: int) -> Float[Tensor, "N D"]:
        """Outputs of expert e for all tokens, routed to it or not, in the dtype of the bank."""
        tokens, gate = self.tokens.to(bank.up_proj), None
        if bank.gate_proj is not None:
            gate = F.linear(tokens, bank.gate_proj[e], None if bank.gate_bias is None else bank.gate_bias[e])
        up = F.linear(tokens, bank.up_proj[e], None if bank.up_bias is None else bank.up_bias[e])
        down_bias = None if bank.down_bias is None else bank.down_bias[e]
        return F.linear(self.activation(gate, up), bank.down_proj[e], down_bias)

    def weights_of(self, bank: ExpertBank, e: int) -> Float[Tensor, "N 1"]:
        """Column e of `weights`, on the device and in the dtype of the bank."""
        return self.weights[:, e, None].to(bank.up_proj)


@dataclass(frozen=True)
class LayerStatistics:
    """Hidden states at one layer.

    Args:
        experts: at the routed experts.
        shared_experts: at the shared experts; None without, or where their outputs are not those of their weights.
        router_sees_tokens: whether the router's scores are those of `experts.tokens`.
    """

    experts: ExpertStatistics
    shared_experts: ExpertStatistics | None
    router_sees_tokens: bool


def token_weights(routed: Bool[Tensor, "N E"]) -> Float[Tensor, "N E"]:
    """`([token x takes expert e] + p / N) / (n_e + p)`, p = 64: an expert's n_e tokens, shrunk towards all N tokens.

    A statistic with these weights is `(n_e own + p all) / (n_e + p)`, of the mean over the expert's own tokens and the
    mean over the layer's: an expert that few tokens take is judged by all tokens that reach the layer.
    """
    taken = routed.float()
    return (taken + PRIOR_TOKENS / len(taken)) / (taken.sum(dim=0) + PRIOR_TOKENS)
