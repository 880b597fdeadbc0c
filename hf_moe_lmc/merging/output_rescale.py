"""Rescaling the outputs of experts: the control for variance collapse."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank, MoeLayer


def rescale_outputs(
    layer: MoeLayer, experts: Float[Tensor, " E"], shared_experts: Float[Tensor, " S"] | None = None
) -> MoeLayer:
    """The layer whose expert e answers `experts[e]` times as much, and likewise for shared experts.

    Averaging unaligned experts shrinks their outputs; scaling them back is a repair that needs no alignment
    (REPAIR, arXiv:2211.08403), hence a control for any alignment.
    """
    shared = layer.shared_experts
    return replace(
        layer,
        experts=_rescaled(layer.experts, experts),
        shared_experts=shared if shared is None or shared_experts is None else _rescaled(shared, shared_experts),
    )


def _rescaled(experts: ExpertBank, factor: Float[Tensor, " E"]) -> ExpertBank:
    down_bias = experts.down_bias
    return replace(
        experts,
        down_proj=experts.down_proj * factor[:, None, None],
        down_bias=None if down_bias is None else down_bias * factor[:, None],
    )
