"""Whether two routers choose the same experts, whatever their numbers."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hf_moe_lmc.matching import solve_assignment


def selected_experts(output: object, num_experts: int, top_k: int) -> Int[Tensor, "T K"]:
    """The experts that a router chose, out of what its module returned: their numbers, or the largest scores."""
    tensors = [tensor for tensor in _tensors(output) if tensor.ndim >= 2]
    for tensor in tensors:
        if not tensor.is_floating_point() and tensor.ndim == 2 and tensor.shape[1] == top_k:
            return tensor
    # DBRX, JetMoe, Llama 4 and Switch Transformers return the scores of all experts, and return them last.
    scores = next(tensor for tensor in reversed(tensors) if tensor.shape[-1] == num_experts)
    return scores.flatten(0, -2).topk(top_k, dim=-1).indices


def routing_agreement(before: Int[Tensor, "T K"], after: Int[Tensor, "T K"]) -> float:
    """`max_sigma |{(t, e): e in before_t, sigma(e) in after_t}| / (T K)`, over all renumberings sigma of the experts.

    1 exactly where one renumbering explains all choices; a linear assignment on how often each pair of experts is
    chosen by the same token.
    """
    size = int(torch.maximum(before.max(), after.max())) + 1
    together = _chosen(before, size).T @ _chosen(after, size)
    return solve_assignment(together).objective / before.numel()


def _chosen(index: Int[Tensor, "T K"], size: int) -> Float[Tensor, "T E"]:
    return torch.zeros(len(index), size, dtype=torch.float64).scatter_(1, index.long().cpu(), 1.0)


def _tensors(output: object) -> list[Tensor]:
    parts = output if isinstance(output, tuple) else (output,)
    return [part for part in parts if isinstance(part, Tensor)]
