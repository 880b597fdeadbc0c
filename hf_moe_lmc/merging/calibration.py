"""Calibration statistics: what reaches a layer on calibration data."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from hf_moe_lmc.moe import ExpertBank, MoeLayer

PRIOR_TOKENS = 64

Activation = Callable[[Float[Tensor, "N F"] | None, Float[Tensor, "N F"]], Float[Tensor, "N F"]]
"""What gate_proj (if any) and up_proj answer -> units."""


@dataclass(frozen=True)
class ExpertCalibration:
    """What reaches the experts of one bank, and how their units answer.

    Args:
        tokens: hidden states, `[N, H]`.
        weights: of every token in the statistics of every expert, `[N, E]`; columns have sum 1.
        activation: of the experts.
    """

    tokens: Float[Tensor, "N H"]
    weights: Float[Tensor, "N E"]
    activation: Activation

    def units(self, bank: ExpertBank, e: int) -> Float[Tensor, "N F"]:
        """The units of expert e for all tokens, in the dtype of the bank."""
        tokens, gate = self.tokens.to(bank.up_proj), None
        if bank.gate_proj is not None:
            gate = F.linear(tokens, bank.gate_proj[e], None if bank.gate_bias is None else bank.gate_bias[e])
        up = F.linear(tokens, bank.up_proj[e], None if bank.up_bias is None else bank.up_bias[e])
        return self.activation(gate, up)

    def answers(self, bank: ExpertBank, e: int) -> Float[Tensor, "N D"]:
        """What expert e answers to all tokens, routed to it or not."""
        return F.linear(self.units(bank, e), bank.down_proj[e], None if bank.down_bias is None else bank.down_bias[e])

    def weights_of(self, bank: ExpertBank, e: int) -> Float[Tensor, "N 1"]:
        """Column e of `weights`, beside the bank."""
        return self.weights[:, e, None].to(bank.up_proj)


@dataclass(frozen=True)
class LayerCalibration:
    """What reaches one layer.

    Args:
        experts: at the routed experts.
        shared_experts: at the shared experts; None where there are none, or they answer in a way that is not known.
        router_sees_tokens: whether the router's scores are those of `experts.tokens`.
    """

    experts: ExpertCalibration
    shared_experts: ExpertCalibration | None
    router_sees_tokens: bool


def token_weights(routed: Bool[Tensor, "N E"]) -> Float[Tensor, "N E"]:
    """`([token x takes expert e] + p / N) / (n_e + p)`, p = 64: an expert's n_e tokens, shrunk towards all N tokens.

    A statistic with these weights is `(n_e own + p all) / (n_e + p)`, of the mean over the expert's own tokens and the
    mean over the layer's: an expert that few tokens take is judged by what reaches the layer.
    """
    taken = routed.float()
    return (taken + PRIOR_TOKENS / len(taken)) / (taken.sum(dim=0) + PRIOR_TOKENS)


BankRepair = Callable[[ExpertBank, ExpertBank, ExpertBank, float, ExpertCalibration], ExpertBank]
"""(merged, reference, other, t, calibration) -> the repaired bank."""


def repair_banks(
    repair: BankRepair, merged: MoeLayer, reference: MoeLayer, other: MoeLayer, t: float, calibration: LayerCalibration
) -> MoeLayer:
    """`merged` with `repair` applied to its routed experts, and to its shared experts where they are calibrated."""
    shared, a, b = merged.shared_experts, reference.shared_experts, other.shared_experts
    if shared and a and b and calibration.shared_experts:
        shared = repair(shared, a, b, t, calibration.shared_experts)
    experts = repair(merged.experts, reference.experts, other.experts, t, calibration.experts)
    return replace(merged, experts=experts, shared_experts=shared)


def on_the_line(start: Tensor, end: Tensor, found: Tensor, t: float) -> Tensor:
    """The factor that brings the size `found` to `(1 - t) start + t end`; 1 where there is no size."""
    return torch.where(found > 0, torch.lerp(start, end, t) / found, torch.ones_like(found))
