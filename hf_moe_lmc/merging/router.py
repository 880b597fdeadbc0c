"""Repair `router`: a router that routes the merged layer's tokens as those of the endpoints would; needs data."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from hf_moe_lmc.moe import Router

from .statistics import LayerStatistics

SHRINKAGE = 0.1
TOLERANCE, ITERATIONS = 1e-6, 100


def solve_router(
    merged: Router,
    endpoints: Sequence[Router],
    shares: Sequence[float],
    translation: bool,
    statistics: LayerStatistics,
) -> Router:
    """The router W that is least in `sum_i s_i E[ |(W - W_i) x|^2_{H_i(x)} ] + ridge`.

    i runs over the endpoints, x over the calibration tokens (with a 1 for the bias, if there is one). H_i is the Fisher
    matrix of the endpoint's routing: `diag(r) - r r^T` of the softmax r of its scores, `diag(r (1 - r))` of their
    sigmoid; so this is the distance of the routing distributions to second order. The ridge draws towards `merged`,
    with 0.1 of the mean diagonal. Solved matrix-free, by conjugate gradients in float64.
    Source: HARC, arXiv:2606.03391, which takes for each endpoint tokens of its own task, and shrinks what is off the
    diagonal instead; without ridge and shrinkage both give the same router (`benchmarks.routers`). The sigmoid is ours.

    Args:
        merged: the mean of `endpoints`; given back as it is where it does not see the experts' tokens.
        endpoints, shares: of the mean, aligned.
        translation: whether scores go through a softmax.
        statistics: of the layer.
    """
    if not statistics.router_sees_tokens:
        return merged
    tokens, current = statistics.experts.tokens.double().to(merged.weight.device), _rows(merged)
    if merged.bias is not None:
        tokens = torch.cat([tokens, tokens.new_ones(len(tokens), 1)], dim=1)
    weights, rows = tokens.new_tensor(list(shares)), torch.stack([_rows(router) for router in endpoints])
    scores = torch.einsum("nd,ced->cne", tokens, rows)
    chances = scores.softmax(dim=2) if translation else scores.sigmoid()

    def form(rows: Float[Tensor, "#C E d"]) -> Float[Tensor, "E d"]:
        """`sum_i s_i E[H_i W_i x x^T]`."""
        change = tokens @ rows.mT
        mean = (chances * change).sum(dim=2, keepdim=True) if translation else chances * change
        return torch.einsum("c,cne,nd->ed", weights, chances * (change - mean), tokens) / len(tokens)

    spread = torch.einsum("c,cne->n", weights, chances * (1 - chances)) / chances.shape[2]
    ridge = SHRINKAGE * (spread * tokens.square().mean(dim=1)).mean()

    def apply(flat: np.ndarray) -> np.ndarray:
        change = torch.from_numpy(flat).to(tokens.device).reshape(current.shape)
        return (form(change[None]) + ridge * change).flatten().cpu().numpy()

    operator = LinearOperator(shape=(current.numel(),) * 2, matvec=apply, dtype=np.dtype(np.float64))  # pyrefly: ignore
    change, _ = cg(operator, form(rows - current).flatten().cpu().numpy(), rtol=TOLERANCE, maxiter=ITERATIONS)
    return _with_rows(merged, current + torch.from_numpy(change).to(current).reshape(current.shape))


def _rows(router: Router) -> Float[Tensor, "E d"]:
    rows = router.weight if router.bias is None else torch.cat([router.weight, router.bias[:, None]], dim=1)
    return rows.double()


def _with_rows(router: Router, rows: Float[Tensor, "E d"]) -> Router:
    rows, width = rows.to(router.weight.dtype), router.weight.shape[1]
    return replace(router, weight=rows[:, :width], bias=None if router.bias is None else rows[:, width])
