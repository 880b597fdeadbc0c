"""Canonical layers of every kind, with weights of order 1, and the naive function that they compute."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_moe_lmc.moe import ExpertBank, MoeLayer, Router

TOP_K = 2


def bank(E: int, F_: int, H: int, *, gated: bool, bias: bool, generator: torch.Generator, dtype: torch.dtype):
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return ExpertBank(
        up_proj=draw(E, F_, H),
        down_proj=draw(E, H, F_),
        gate_proj=draw(E, F_, H) if gated else None,
        up_bias=draw(E, F_) if bias else None,
        down_bias=draw(E, H) if bias else None,
    )


def layer_kind(*, gated: bool, bias: bool, router_bias: bool, shared: bool) -> Callable[..., MoeLayer]:
    def build(E: int = 5, F_: int = 7, H: int = 13, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> MoeLayer:
        generator = torch.Generator().manual_seed(seed)
        experts = bank(E, F_, H, gated=gated, bias=bias, generator=generator, dtype=dtype)
        return MoeLayer(
            Router(
                torch.randn(E, H, generator=generator, dtype=torch.float64).to(dtype),
                torch.randn(E, generator=generator, dtype=torch.float64).to(dtype) if router_bias else None,
            ),
            experts,
            bank(1, F_ + 1, H, gated=gated, bias=bias, generator=generator, dtype=dtype) if shared else None,
        )

    return build


LAYER_KINDS = {
    "mlp": layer_kind(gated=False, bias=True, router_bias=True, shared=False),
    "mlp, router without bias": layer_kind(gated=False, bias=True, router_bias=False, shared=False),
    "mlp, shared experts": layer_kind(gated=False, bias=True, router_bias=True, shared=True),
    "swiglu": layer_kind(gated=True, bias=False, router_bias=False, shared=False),
    "swiglu, shared experts": layer_kind(gated=True, bias=False, router_bias=False, shared=True),
}


def naive_forward(layer: MoeLayer, x: Tensor) -> Tensor:
    """What a layer computes for tokens `x` `[T, H]`, token by token and expert by expert."""
    output = torch.zeros_like(x)
    for t, token in enumerate(x):
        scores = layer.router.weight @ token + (0 if layer.router.bias is None else layer.router.bias)
        chosen = scores.topk(TOP_K).indices
        weights = scores[chosen].softmax(0) if layer.router.scoring == "softmax" else scores[chosen].sigmoid()
        for weight, expert in zip(weights, chosen, strict=True):
            output[t] += weight * naive_expert(layer.experts, int(expert), token)
        if layer.shared_experts is not None:
            for expert in range(layer.shared_experts.num_experts):
                output[t] += naive_expert(layer.shared_experts, expert, token)
    return output


def naive_expert(experts: ExpertBank, e: int, token: Tensor) -> Tensor:
    up = experts.up_proj[e] @ token + (0 if experts.up_bias is None else experts.up_bias[e])
    units = F.relu(up) if experts.gate_proj is None else F.silu(experts.gate_proj[e] @ token) * up
    return experts.down_proj[e] @ units + (0 if experts.down_bias is None else experts.down_bias[e])


def same_weights(a: MoeLayer, b: MoeLayer) -> bool:
    """Whether two layers are equal bit for bit."""
    x, y = a.tensors(), b.tensors()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)
