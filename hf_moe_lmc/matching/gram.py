"""The Gram cost between experts, which does not depend on the order and signs of their units."""

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank

_TILE_BYTES = 2**26


def gram_cost(reference: ExpertBank, other: ExpertBank, dtype: torch.dtype) -> Float[Tensor, "E E"]:
    """`C_ij = (|A_i^T A_i - A'_j^T A'_j|_F^2 + |B_i B_i^T - B'_j B'_j^T|_F^2)^(1/2)`, biases as a further column.

    A is up_proj and B is down_proj; a gated expert adds the term of gate_proj. The Gram matrices are formed in tiles of
    rows, so that 64 MiB of them are held at a time. Source: arXiv:2509.11348, equation 11.

    Args:
        reference, other: experts as stored.
        dtype: computed in it.
    """
    total = torch.zeros(reference.num_experts, other.num_experts, dtype=dtype, device=reference.up_proj.device)
    for a, b in zip(matrices(reference), matrices(other), strict=True):
        width = a.shape[2]
        rows = max(1, _TILE_BYTES // (a.shape[0] * width * dtype.itemsize))
        for start in range(0, width, rows):
            tile, other_tile = (_gram_rows(matrix, start, start + rows, dtype) for matrix in (a, b))
            # The default mode of cdist cancels catastrophically for nearly equal rows.
            total += torch.cdist(tile, other_tile, compute_mode="donot_use_mm_for_euclid_dist").square()
    return total.sqrt()


def matrices(experts: ExpertBank) -> list[Float[Tensor, "E F d"]]:
    """Per kind one matrix of all experts, units as rows, its bias as last column."""
    matrices = [(experts.up_proj, experts.up_bias), (experts.gate_proj, experts.gate_bias)]
    with_bias = [m if b is None else torch.cat([m, b[..., None]], dim=2) for m, b in matrices if m is not None]
    down = experts.down_proj
    if experts.down_bias is not None:
        down = torch.cat([down, experts.down_bias[..., None]], dim=2)
    return [*with_bias, down.mT]


def _gram_rows(matrix: Float[Tensor, "E F d"], start: int, stop: int, dtype: torch.dtype) -> Float[Tensor, "E r"]:
    """Rows `start : stop` of `M^T M` of every expert, flattened."""
    rows = [(one[:, start:stop].to(dtype).T @ one.to(dtype)).flatten() for one in matrix]
    return torch.stack(rows)
