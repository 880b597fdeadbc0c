"""Router re-solve: the router that routes the merged layer's tokens as the routers of both ends would."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from hf_moe_lmc.moe import MoeLayer, Router

from .calibration import LayerCalibration

SHRINKAGE = 0.1
TOLERANCE, ITERATIONS = 1e-6, 100


def solve_router(
    merged: MoeLayer, reference: MoeLayer, other: MoeLayer, t: float, calibration: LayerCalibration
) -> MoeLayer:
    """`merged` with the router W that is least in `sum_d c_d E[ |(W - W_d) x|^2_{H_d(x)} ] + ridge`.

    d runs over the ends, c = (1 - t, t), x over the calibration tokens (with a 1 for the bias, if there is one). H_d is
    the Fisher matrix of the end's routing: `diag(r) - r r^T` of the softmax r of its scores, `diag(r (1 - r))` of their
    sigmoid; so this is the distance of the routing distributions to second order. The ridge draws towards the router of
    `merged`, with 0.1 of the mean diagonal. Solved matrix-free, by conjugate gradients in float64,
    until the residual is 1e-6 of the right-hand side or 100 steps are done.
    Source: HARC, arXiv:2606.03391, which shrinks likewise; the sigmoid is ours.

    Routers that do not see the experts' tokens, or do not score at all, stay as they are.
    """
    router, a, b = merged.router, reference.router, other.router
    if not (router and a and b and calibration.router_sees_tokens):
        return merged
    tokens, current = calibration.experts.tokens.double().to(router.weight.device), _rows(router)
    if router.bias is not None:
        tokens = torch.cat([tokens, tokens.new_ones(len(tokens), 1)], dim=1)
    shares, rows = tokens.new_tensor([1 - t, t]), torch.stack([_rows(a), _rows(b)])
    scores = torch.einsum("nd,ced->cne", tokens, rows)
    softmax = merged.group.router_translation
    chances = scores.softmax(dim=2) if softmax else scores.sigmoid()

    def form(rows: Float[Tensor, "#C E d"]) -> Float[Tensor, "E d"]:
        """`sum_d c_d E[H_d W_d x x^T]`."""
        change = tokens @ rows.mT
        mean = (chances * change).sum(dim=2, keepdim=True) if softmax else chances * change
        return torch.einsum("c,cne,nd->ed", shares, chances * (change - mean), tokens) / len(tokens)

    spread = torch.einsum("c,cne->n", shares, chances * (1 - chances)) / chances.shape[2]
    ridge = SHRINKAGE * (spread * tokens.square().mean(dim=1)).mean()

    def unflattened(flat: NDArray[np.float64]) -> Float[Tensor, "E d"]:
        return torch.from_numpy(flat).to(current).reshape(current.shape)

    def matvec(flat: NDArray[np.float64]) -> NDArray[np.float64]:
        change = unflattened(flat)
        return (form(change[None]) + ridge * change).flatten().cpu().numpy()

    right = form(rows - current).flatten().cpu().numpy()
    matrix = LinearOperator(shape=(len(right), len(right)), matvec=matvec, dtype=right.dtype)  # pyrefly: ignore
    change, _ = cg(matrix, right, rtol=TOLERANCE, maxiter=ITERATIONS)
    return replace(merged, router=_with_rows(router, current + unflattened(change)))


def _rows(router: Router) -> Float[Tensor, "E d"]:
    rows = router.weight if router.bias is None else torch.cat([router.weight, router.bias[:, None]], dim=1)
    return rows.double()


def _with_rows(router: Router, rows: Float[Tensor, "E d"]) -> Router:
    rows, width = rows.to(router.weight.dtype), router.weight.shape[1]
    return replace(router, weight=rows[:, :width], bias=None if router.bias is None else rows[:, width])
