"""Canonical layers of every kind, with weights of order 1, and the naive function that they compute."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_moe_lmc.moe import ExpertBank, MoeLayer, Router, SymmetryGroup
from hf_moe_lmc.symmetry import MoeSymmetry

TOP_K = 2


def bank(E: int, F_: int, H: int, *, gated: bool, bias: bool, generator: torch.Generator, dtype: torch.dtype):
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return ExpertBank(
        up_proj=draw(E, F_, H),
        down_proj=draw(E, H, F_),
        gate_proj=draw(E, F_, H) if gated else None,
        up_bias=draw(E, F_) if bias else None,
        gate_bias=draw(E, F_) if bias and gated else None,
        down_bias=draw(E, H) if bias else None,
    )


def layer_kind(
    *,
    gated: bool,
    bias: bool,
    shared: bool,
    router_bias: bool = False,
    selection_bias: bool = False,
    experts: int = 5,
    group: SymmetryGroup,
) -> Callable[..., MoeLayer]:
    def build(E: int = experts, F_: int = 7, H: int = 13, *, seed: int = 0, dtype=torch.float64) -> MoeLayer:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        options = {"gated": gated, "bias": bias, "generator": generator, "dtype": dtype}
        return MoeLayer(
            Router(draw(E, H), draw(E) if router_bias else None, draw(E) if selection_bias else None),
            bank(E, F_, H, **options),
            bank(1, F_ + 1, H, **options) if shared else None,
            replace(group, shared_unit_signs=group.shared_unit_signs and shared),
        )

    return build


SOFTMAX = SymmetryGroup(router_translation=True)
SIGNED = SymmetryGroup(router_translation=True, unit_signs=True, shared_unit_signs=True)
GROUPED = SymmetryGroup(expert_groups=3, selection_bias_constant=True, unit_signs=True, shared_unit_signs=True)

LAYER_KINDS = {
    "mlp": layer_kind(gated=False, bias=True, router_bias=True, shared=False, group=SOFTMAX),
    "mlp, router without bias": layer_kind(gated=False, bias=True, shared=False, group=SOFTMAX),
    "mlp, shared experts": layer_kind(gated=False, bias=True, router_bias=True, shared=True, group=SOFTMAX),
    "swiglu": layer_kind(gated=True, bias=False, shared=False, group=SIGNED),
    "swiglu, shared experts": layer_kind(gated=True, bias=False, shared=True, group=SIGNED),
    "swiglu with biases": layer_kind(gated=True, bias=True, router_bias=True, shared=False, group=SIGNED),
    "grouped sigmoid": layer_kind(gated=True, bias=False, selection_bias=True, shared=True, experts=6, group=GROUPED),
}


def naive_forward(layer: MoeLayer, x: Tensor) -> Tensor:
    """What a layer computes for tokens `x` `[T, H]`, token by token and expert by expert."""
    output = torch.zeros_like(x)
    for t, token in enumerate(x):
        for weight, expert in zip(*naive_routing(layer, token), strict=True):
            output[t] += weight * naive_expert(layer.experts, int(expert), token)
        if layer.shared_experts is not None:
            for expert in range(layer.shared_experts.num_experts):
                output[t] += naive_expert(layer.shared_experts, expert, token)
    return output


def naive_routing(layer: MoeLayer, token: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and indices of the experts of one token: softmax, or DeepSeek-V3's biased and grouped sigmoid."""
    router, groups = layer.router, layer.group.expert_groups
    scores = router.weight @ token + (0 if router.bias is None else router.bias)
    if layer.group.router_translation:
        chosen = scores.topk(TOP_K).indices
        return scores[chosen].softmax(0), chosen
    scores = scores.sigmoid()
    choice = scores if router.selection_bias is None else scores + router.selection_bias
    if groups > 1:
        best = choice.reshape(groups, -1).sum(dim=1).topk(groups - 1).indices
        allowed = torch.zeros(groups, dtype=torch.bool).index_fill(0, best, True)
        choice = choice.masked_fill(~allowed.repeat_interleave(len(scores) // groups), -torch.inf)
    chosen = choice.topk(TOP_K).indices
    return scores[chosen], chosen


def naive_expert(experts: ExpertBank, e: int, token: Tensor) -> Tensor:
    up = experts.up_proj[e] @ token + (0 if experts.up_bias is None else experts.up_bias[e])
    if experts.gate_proj is None:
        units = F.relu(up)
    else:
        units = F.silu(experts.gate_proj[e] @ token + (0 if experts.gate_bias is None else experts.gate_bias[e])) * up
    return experts.down_proj[e] @ units + (0 if experts.down_bias is None else experts.down_bias[e])


def same_weights(a: MoeLayer, b: MoeLayer) -> bool:
    """Whether two layers are equal bit for bit."""
    x, y = a.tensors(), b.tensors()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def derangement(layer: MoeLayer, seed: int = 0) -> MoeSymmetry:
    """A random symmetry of `layer` that moves every expert and every unit."""
    return layer.group.random_derangement(*layer.symmetry_shape, generator=torch.Generator().manual_seed(seed))


def scaled_units(experts: ExpertBank, degree: int, seed: int = 0) -> ExpertBank:
    """Every unit's up_proj row and up_bias times a random c in [0.5, 2], its down_proj column divided by c^degree."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(experts.num_experts, experts.num_units, generator=generator, dtype=torch.float64)
    factor = (4.0**uniform / 2).to(experts.up_proj)
    return replace(
        experts,
        up_proj=experts.up_proj * factor[..., None],
        down_proj=experts.down_proj / factor[:, None] ** degree,
        up_bias=None if experts.up_bias is None else experts.up_bias * factor,
    )


def planted_scales(layer: MoeLayer, sigma: float, seed: int = 1) -> MoeLayer:
    """The layer with log-normal scales on every unit, routed and shared, as far as its group has them free."""
    generator, group = torch.Generator().manual_seed(seed), layer.group

    def scaled(bank: ExpertBank, degree: int) -> ExpertBank:
        c = (sigma * torch.randn(bank.up_proj.shape[:2], generator=generator, dtype=torch.float64)).exp()
        bias = None if bank.up_bias is None else bank.up_bias * c
        return replace(
            bank, up_proj=bank.up_proj * c[..., None], down_proj=bank.down_proj / c[:, None] ** degree, up_bias=bias
        )

    shared = layer.shared_experts
    return replace(
        layer,
        experts=scaled(layer.experts, group.unit_scale_degree),
        shared_experts=scaled(shared, group.shared_unit_scale_degree) if shared else None,
    )
