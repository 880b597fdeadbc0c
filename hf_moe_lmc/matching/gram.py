"""The Gram cost between experts, which does not depend on the order and signs of their units: exact and sketched."""

import math
from dataclasses import replace
from itertools import combinations_with_replacement

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank

_TILE_BYTES = 2**26
_GLIMPSE = 64  # hidden coordinates
_BLOCKS = 8
_COLUMNS = 4  # per block


def gram_cost(reference: ExpertBank, other: ExpertBank, dtype: torch.dtype) -> Float[Tensor, "E E"]:
    """`C_ij = (|A_i^T A_i - A'_j^T A'_j|_F^2 + |B_i B_i^T - B'_j B'_j^T|_F^2)^(1/2)`, biases as a further column.

    A is up_proj and B is down_proj; a gated expert adds the term of gate_proj. Every term is computed in the cheaper
    of two forms, see `products_are_cheaper`, in tiles of 64 MiB. Source: arXiv:2509.11348, equation 11.

    Args:
        reference, other: experts as stored.
        dtype: computed in it, or better.
    """
    total = torch.zeros(reference.num_experts, other.num_experts, dtype=dtype, device=reference.up_proj.device)
    for a, b in zip(matrices(reference), matrices(other), strict=True):
        total += squares_by_products(a, b) if products_are_cheaper(*a.shape) else squares_by_grams(a, b, dtype)
    return total.sqrt()


def glimpsed_gram_cost(reference: ExpertBank, other: ExpertBank) -> Float64[Tensor, "E E"]:
    """`gram_cost` of the first 64 hidden coordinates alone, at next to no cost: all matrices shrink to `[64, 64]`.

    In float64, where fourth powers of weights do not overflow: it is evidence, and must not fail.
    """
    return gram_cost(_glimpse(reference), _glimpse(other), torch.float64)


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


def products_are_cheaper(num_experts: int, units: int, width: int) -> bool:
    """Whether `squares_by_products` takes fewer operations than `squares_by_grams`: many experts of few units.

    Gram matrices `[d, d]` take `2 E F d^2` (half of each, of both layers), and their distances `3/2 E^2 d^2`; products
    `[F, F]` take `2 F^2 d` for each of `E^2 + 2 E` pairs, and count twice, being of float64.
    """
    grams = 2 * num_experts * units * width**2 + 1.5 * (num_experts * width) ** 2
    return 4 * (num_experts**2 + 2 * num_experts) * units**2 * width < grams


def squares_by_grams(a: Float[Tensor, "E F d"], b: Float[Tensor, "E F d"], dtype: torch.dtype) -> Float[Tensor, "E E"]:
    """`|A_i^T A_i - A'_j^T A'_j|_F^2` from the upper triangle of the Gram matrices, in square tiles of all experts."""
    total = torch.zeros(len(a), len(b), dtype=dtype, device=a.device)
    size = max(1, math.isqrt(_TILE_BYTES // (len(a) * dtype.itemsize)))
    strips = [slice(start, start + size) for start in range(0, a.shape[2], size)]
    for rows, columns in combinations_with_replacement(strips, 2):
        tile, other_tile = (_gram_tile(matrix, rows, columns, dtype) for matrix in (a, b))
        # The default mode of cdist cancels catastrophically for nearly equal rows.
        squares = torch.cdist(tile, other_tile, compute_mode="donot_use_mm_for_euclid_dist").square()
        total += squares if rows == columns else 2 * squares
    return total


def squares_by_products(a: Float[Tensor, "E F d"], b: Float[Tensor, "E F d"]) -> Float64[Tensor, "E E"]:
    """The same as `|A_i A_i^T|^2 + |A'_j A'_j^T|^2 - 2 |A_i A'_j^T|^2`; float64, since near experts cancel."""
    own, others = ([_squared_products(one, one[None]) for one in bank] for bank in (a, b))
    pairs = torch.stack([_squared_products(one, b) for one in a])
    return (torch.stack(own) + torch.cat(others) - 2 * pairs).clamp(min=0)


def matrices(experts: ExpertBank) -> list[Float[Tensor, "E F d"]]:
    """Per kind one matrix of all experts, units as rows, its bias as last column."""
    matrices = [(experts.up_proj, experts.up_bias), (experts.gate_proj, experts.gate_bias)]
    with_bias = [m if b is None else torch.cat([m, b[..., None]], dim=2) for m, b in matrices if m is not None]
    down = experts.down_proj
    if experts.down_bias is not None:
        down = torch.cat([down, experts.down_bias[..., None]], dim=2)
    return [*with_bias, down.mT]


def _glimpse(experts: ExpertBank) -> ExpertBank:
    gate, down_bias = experts.gate_proj, experts.down_bias
    return replace(
        experts,
        up_proj=experts.up_proj[:, :, :_GLIMPSE],
        gate_proj=None if gate is None else gate[:, :, :_GLIMPSE],
        down_proj=experts.down_proj[:, :_GLIMPSE],
        down_bias=None if down_bias is None else down_bias[:, :_GLIMPSE],
    )


def _gram_tile(matrix: Float[Tensor, "E F d"], rows: slice, columns: slice, dtype: torch.dtype) -> Float[Tensor, "E t"]:
    """`(M^T M)[rows, columns]` of every expert, flattened."""
    return torch.stack([(one[:, rows].to(dtype).T @ one[:, columns].to(dtype)).flatten() for one in matrix])


def _squared_products(one: Float[Tensor, "F d"], bank: Float[Tensor, "E F d"]) -> Float64[Tensor, " E"]:
    """`|A A'_j^T|_F^2` of one expert and every other, float64."""
    units, count = len(one), max(1, _TILE_BYTES // (8 * max(1, len(one)) * max(bank.shape[1:])))
    left, squares = one.double(), []
    for others in bank.split(count):
        products = left @ others.double().flatten(0, 1).T
        squares.append(products.square_().view(units, len(others), -1).sum(dim=(0, 2)))
    return torch.cat(squares)


def _projected(matrix: Float[Tensor, "F d"], columns: Float[Tensor, "d r"]) -> Float[Tensor, "d r"]:
    return matrix.T @ (matrix @ columns)
