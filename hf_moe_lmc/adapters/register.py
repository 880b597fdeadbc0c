"""Telling the package what modules of your own do."""

from collections.abc import Mapping
from typing import Literal

from torch import nn

from .class_key import class_key
from .gates import EXPERTS, MLPS, Gate
from .routers import CONSTANT_SENSITIVE, GROUPS, SOFTMAX


def register_adapter(
    router: type[nn.Module],
    scores: Literal["softmax", "sigmoid"],
    experts: Mapping[type[nn.Module], Gate] | None = None,
    mlps: Mapping[type[nn.Module], Gate] | None = None,
    expert_groups: str | None = None,
) -> None:
    """Make a Mixture-of-Experts architecture known that is not part of Transformers; for remote or private code.

    What you state decides which rewrites are taken for symmetries, and cannot be checked without running the model:
    `hf-moe-lmc verify` compares its outputs before and after. Where weights lie is found as in Transformers: a block
    with a child `gate` or `router`, and a child `experts` that holds `gate_up_proj` or `up_proj` and `down_proj` in
    3-D, or one MLP of linears per expert.

    Args:
        router: class of the child `gate` or `router`, whose `weight` is `[E, H]`; of the block, where that child is a
            plain `nn.Linear`.
        scores: "softmax" if a number added to the scores of all experts changes nothing; "sigmoid" for all else.
        experts: class of `experts` with 3-D weights -> what it computes between its projections: "gated" is
            `act(gate) * up`; "odd" changes sign with `up` but is not linear in it, as `act(gate) * clamp(up, -7, 7)`;
            "offset" neither, as `act(gate) * (up + 1)`; "ungated" is `act(up)`.
        mlps: the same for classes of MLPs of linears: one expert of a list, shared experts, dense layers.
        expert_groups: attribute of the router that holds the number of groups, with group-limited routing.

    Example:
        A block with a sigmoid router and a list of SwiGLU experts:

        >>> import torch
        >>> from torch import nn
        >>> from torch.nn import functional as F
        >>> from hf_moe_lmc import align, register_adapter, scramble
        >>> class MyMLP(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.gate_proj, self.up_proj = nn.Linear(8, 6, bias=False), nn.Linear(8, 6, bias=False)
        ...         self.down_proj = nn.Linear(6, 8, bias=False)
        ...     def forward(self, x):
        ...         return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        >>> class MyRouter(nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x).sigmoid().topk(2)
        >>> class MyBlock(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.gate, self.experts = MyRouter(8, 4, bias=False), nn.ModuleList(MyMLP() for _ in range(4))
        ...     def forward(self, x):
        ...         weights, chosen = self.gate(x)
        ...         answers = torch.stack([expert(x) for expert in self.experts], dim=1)
        ...         return (weights[..., None] * answers.take_along_dim(chosen[..., None], dim=1)).sum(dim=1)
        >>> register_adapter(MyRouter, "sigmoid", mlps={MyMLP: "gated"})
        >>> model, tokens = nn.ModuleDict({"mlp": MyBlock()}), torch.randn(5, 8)
        >>> before = model["mlp"](tokens)
        >>> model, planted = scramble(model)
        >>> torch.allclose(model["mlp"](tokens), before, atol=1e-5)
        True
    """
    key = class_key(router)
    # Whether a constant of selection biases is free was not said.
    CONSTANT_SENSITIVE.add(key)
    if scores == "softmax":
        SOFTMAX.add(key)
    if expert_groups:
        GROUPS[key] = expert_groups
    EXPERTS.update({class_key(cls): gate for cls, gate in (experts or {}).items()})
    MLPS.update({class_key(cls): gate for cls, gate in (mlps or {}).items()})
