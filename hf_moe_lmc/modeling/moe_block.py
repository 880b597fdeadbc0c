"""The Mixture-of-Experts block of the paper: softmax router, MLP experts with biases, optional shared experts."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation

from .configuration import MoeGPT2Config, MoeViTConfig

MoeConfig = MoeViTConfig | MoeGPT2Config


class MoeRouter(nn.Module):
    """Scores W x + b, and softmax weights over the largest `config.active_experts` of them."""

    def __init__(self, config: MoeConfig):
        super().__init__()
        self.top_k = config.active_experts
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(config.num_experts))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[T, H]` -> router logits `[T, E]`, routing weights `[T, K]`, expert indices `[T, K]`."""
        logits = F.linear(hidden_states, self.weight, self.bias)
        top_logits, index = logits.topk(self.top_k, dim=-1)
        # Half-precision scores would round the weights of near ties; float64 stays float64 for exactness checks.
        weights = top_logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        return logits, weights.to(logits.dtype), index


@use_experts_implementation(has_gate=False, has_bias=True)
class MoeExperts(nn.Module):
    """E experts `down(act(up x + b)) + c` in 3-D tensors, for every experts implementation of Transformers."""

    def __init__(self, config: MoeConfig):
        super().__init__()
        experts, units, hidden = config.num_experts, config.expert_width, config.hidden_size
        self.num_experts = experts
        self.up_proj = nn.Parameter(torch.empty(experts, units, hidden))
        self.up_proj_bias = nn.Parameter(torch.empty(experts, units))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, units))
        self.down_proj_bias = nn.Parameter(torch.empty(experts, hidden))
        self.act_fn = ACT2FN[config.moe_hidden_act]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The "eager" implementation: `sum_k weights[t, k] * expert_{index[t, k]}(x_t)`, expert by expert; `[T, H]`."""
        output = torch.zeros_like(hidden_states)
        for expert in range(self.num_experts):
            token, slot = torch.where(top_k_index == expert)
            units = self.act_fn(F.linear(hidden_states[token], self.up_proj[expert], self.up_proj_bias[expert]))
            answer = F.linear(units, self.down_proj[expert], self.down_proj_bias[expert])
            output.index_add_(0, token, answer * top_k_weights[token, slot, None])
        return output


class MoeSharedExperts(nn.Module):
    """The always-active experts, as one MLP of their total width."""

    def __init__(self, config: MoeConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.shared_width)
        self.down_proj = nn.Linear(config.shared_width, config.hidden_size)
        self.act_fn = ACT2FN[config.moe_hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[T, H]` -> `[T, H]`."""
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class MoeBlock(nn.Module):
    """Routed experts plus shared experts, in the place of a dense FFN (arXiv:2509.11348, section 2)."""

    def __init__(self, config: MoeConfig, dropout: float = 0.0):
        super().__init__()
        self.router = MoeRouter(config)
        self.experts = MoeExperts(config)
        self.shared_experts = MoeSharedExperts(config) if config.shared_width else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[*batch, H]` -> `[*batch, H]`."""
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, index = self.router(tokens)
        output = self.experts(tokens, index, weights)
        if self.shared_experts is not None:
            output = output + self.shared_experts(tokens)
        return self.dropout(output.reshape(hidden_states.shape))
