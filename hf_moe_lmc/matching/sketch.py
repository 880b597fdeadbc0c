"""The Gram cost between experts from a random projection, with an estimate of its error."""

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank
from hf_moe_lmc.symmetry import Permutation

from .gram import matrices

_BLOCKS = 8
_COLUMNS = 4  # per block
_SURE = 6.0  # standard errors, of eight values


def sketched_squares(reference: ExpertBank, other: ExpertBank, dtype: torch.dtype) -> Float[Tensor, "b E E"]:
    """Eight independent estimates of the square of `gram_cost`, each from four columns.

    `|(A_i^T A_i - A'_j^T A'_j) W|_F^2` with W `[d, 4]` standard normal, seeded, is four times `|...|_F^2` on average;
    likewise for the other matrices. `A^T (A W)`, all 32 columns, costs `64 / d` of the Gram matrix `[d, d]`.

    Args:
        reference, other: experts as stored.
        dtype: computed in it.
    """
    generator = torch.Generator().manual_seed(0)
    device = reference.up_proj.device
    total = torch.zeros(_BLOCKS, reference.num_experts, other.num_experts, dtype=dtype, device=device)
    for a, b in zip(matrices(reference), matrices(other), strict=True):
        columns = torch.randn(a.shape[2], _BLOCKS * _COLUMNS, generator=generator).to(device, dtype)
        left, right = (torch.stack([_projected(one.to(dtype), columns) for one in matrix]) for matrix in (a, b))
        for block, pair in enumerate(zip(left.split(_COLUMNS, dim=2), right.split(_COLUMNS, dim=2), strict=True)):
            x, y = (part.flatten(1) for part in pair)
            # The default mode of cdist cancels catastrophically for nearly equal rows.
            total[block] += torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    return total / _COLUMNS


def is_sure(squares: Float[Tensor, "b E E"], order: Permutation) -> bool:
    """Whether every expert's partner is nearer than all others by six standard errors: the order of `gram_cost` then.

    Errors of one expert's costs are much alike, since all see the same columns: the standard error is that of their
    differences over the estimates.
    """
    own = order.index.to(squares.device)[None, :, None].expand(len(squares), -1, 1)
    excess = (squares - squares.gather(2, own)).scatter(2, own, torch.inf)
    error = excess.std(dim=0) / len(squares) ** 0.5
    # The partners' own: inf, with an error that is not a number.
    return bool(((excess.mean(dim=0) > _SURE * error) | error.isnan()).all())


def _projected(matrix: Float[Tensor, "F d"], columns: Float[Tensor, "d r"]) -> Float[Tensor, "d r"]:
    return matrix.T @ (matrix @ columns)
