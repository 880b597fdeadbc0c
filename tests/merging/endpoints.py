"""Layers to be merged, their shares, and statistics of what reaches them."""

from dataclasses import replace

import torch
from torch.nn import functional as F

from hf_moe_lmc.merging import ExpertStatistics, LayerStatistics, token_weights
from hf_moe_lmc.moe import MoeLayer
from tests.layers import LAYER_KINDS, naive_routing

SHARES = [(0.7, 0.3), (0.5, 0.2, 0.3)]

# (kind of layer, degree of its units' free scale)
KINDS = [(kind, degree) for kind in LAYER_KINDS for degree in (0, 1)] + [("mlp, shared experts", 2)]


def endpoints(kind: str | tuple[str, int], shares: tuple[float, ...], **sizes: int) -> list[MoeLayer]:
    """One layer for every share."""
    name, degree = (kind, None) if isinstance(kind, str) else kind
    layers = [LAYER_KINDS[name](**sizes, seed=seed) for seed in range(len(shares))]
    if degree is None:
        return layers
    group = replace(layers[0].group, unit_scale_degree=degree, shared_unit_scale_degree=degree)
    return [replace(layer, group=group) for layer in layers]


def on_the_line(values, shares):
    """`sum_i s_i x_i`, written out."""
    return sum(share * value for share, value in zip(shares, values, strict=True))


def activation(gate, up):
    return F.relu(up) if gate is None else F.silu(gate) * up


def statistics(layer: MoeLayer, number: int = 200) -> LayerStatistics:
    """Of random tokens, routed as `layer` does."""
    tokens = torch.randn(number, layer.router.weight.shape[1], generator=torch.Generator().manual_seed(9)).double()
    routed = torch.zeros(number, layer.experts.num_experts, dtype=torch.bool)
    for row, token in zip(routed, tokens, strict=True):
        row[naive_routing(layer, token)[1]] = True
    shared = ExpertStatistics(tokens, torch.full((number, 1), 1 / number), activation)
    return LayerStatistics(
        ExpertStatistics(tokens, token_weights(routed), activation), shared if layer.shared_experts else None, True
    )
