"""The Gram cost between experts, which does not depend on the order and signs of their units: exact and sketched."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from .distance import GaugedLayer

_TILE_BYTES = 2**26
_BLOCKS = 8
_COLUMNS = 4  # per block


def gram_cost(reference: GaugedLayer, other: GaugedLayer) -> Float[Tensor, "E E"]:
    """`C_ij = (|A_i^T A_i - A'_j^T A'_j|_F^2 + |B_i B_i^T - B'_j B'_j^T|_F^2)^(1/2)`, biases as a further column.

    A is up_proj and B is down_proj; a gated expert adds the term of gate_proj. Every term is computed in the cheaper
    of two forms, see `products_are_cheaper`, in tiles of 64 MiB. Source: arXiv:2509.11348, equation 11.
    """
    total = torch.zeros(1, dtype=reference.dtype, device=reference.scales.up.device)
    for a, b in zip(matrices(reference), matrices(other), strict=True):
        cheaper = products_are_cheaper(*a.weight.shape)
        total = total + (squares_by_products(a, b) if cheaper else squares_by_grams(a, b, reference.dtype))
    return total.sqrt()


def sketched_squares(reference: GaugedLayer, other: GaugedLayer) -> Float[Tensor, "b E E"]:
    """Eight independent estimates of the square of `gram_cost`, each from four columns.

    `|(A_i^T A_i - A'_j^T A'_j) W|_F^2` with W `[d, 4]` standard normal, seeded, is four times `|...|_F^2` on average;
    likewise for the other matrices. `A^T (A W)`, all 32 columns, costs `64 / d` of the Gram matrix `[d, d]`.
    """
    generator, dtype = torch.Generator().manual_seed(0), reference.dtype
    total = torch.zeros(_BLOCKS, 1, 1, dtype=dtype, device=reference.scales.up.device)
    for a, b in zip(matrices(reference), matrices(other), strict=True):
        columns = torch.randn(a.weight.shape[2], _BLOCKS * _COLUMNS, generator=generator).to(total)
        left, right = (torch.cat([one.mT @ (one @ columns) for one in matrix.blocks(dtype)]) for matrix in (a, b))
        pairs = zip(left.split(_COLUMNS, dim=2), right.split(_COLUMNS, dim=2), strict=True)
        # The default mode of cdist cancels catastrophically for nearly equal rows.
        squares = [
            torch.cdist(x.flatten(1), y.flatten(1), compute_mode="donot_use_mm_for_euclid_dist").square()
            for x, y in pairs
        ]
        total = total + torch.stack(squares)
    return total / _COLUMNS


@dataclass(frozen=True)
class ScaledMatrices:
    """One kind of matrix of all experts, units as rows under their scales.

    Args:
        weight: `[E, F, d]`, as stored, its bias as last column.
        scale: `[E, F]`, of the rows; None where none is free.
    """

    weight: Float[Tensor, "E F d"]
    scale: Float[Tensor, "E F"] | None = None

    def blocks(
        self, dtype: torch.dtype, size: int = 1, columns: slice = slice(None)
    ) -> Iterator[Float[Tensor, "b F c"]]:
        """Some columns of the matrices of `size` experts after the other, scaled."""
        for start in range(0, len(self.weight), size):
            rows = self.weight[start : start + size, :, columns].to(dtype)
            yield rows if self.scale is None else rows * self.scale[start : start + size, :, None].to(dtype)


def matrices(layer: GaugedLayer) -> list[ScaledMatrices]:
    """Per kind one matrix of all experts; down_bias is one more unit, all other biases are one more column."""
    experts, scales = layer.layer.experts, layer.scales
    kinds = [(experts.up_proj, experts.up_bias, scales.up), (experts.gate_proj, experts.gate_bias, None)]
    inward = [
        ScaledMatrices(weight if bias is None else torch.cat([weight, bias[..., None]], dim=2), scale)
        for weight, bias, scale in kinds
        if weight is not None
    ]
    down, scale, bias = experts.down_proj, scales.down, experts.down_bias
    if bias is not None:
        down, scale = torch.cat([down, bias[..., None]], dim=2), torch.cat([scale, scales.outputs[:, None]], dim=1)
    return [*inward, ScaledMatrices(down.mT, scale)]


def products_are_cheaper(num_experts: int, units: int, width: int) -> bool:
    """Whether `squares_by_products` takes fewer operations than `squares_by_grams`: many experts of few units.

    Gram matrices `[d, d]` take `2 E F d^2` (half of each, of both layers), and their distances `3/2 E^2 d^2`; products
    `[F, F]` take `2 F^2 d` for each of `E^2 + 2 E` pairs, and count twice, being of float64.
    """
    grams = 2 * num_experts * units * width**2 + 1.5 * (num_experts * width) ** 2
    return 4 * (num_experts**2 + 2 * num_experts) * units**2 * width < grams


def squares_by_grams(a: ScaledMatrices, b: ScaledMatrices, dtype: torch.dtype) -> Float[Tensor, "E E"]:
    """`|A_i^T A_i - A'_j^T A'_j|_F^2` from the upper triangle of the Gram matrices, in square tiles of all experts."""
    size = max(1, math.isqrt(_TILE_BYTES // (len(a.weight) * dtype.itemsize)))
    strips = [slice(start, start + size) for start in range(0, a.weight.shape[2], size)]
    total = torch.zeros(1, dtype=dtype, device=a.weight.device)
    for rows, columns in combinations_with_replacement(strips, 2):
        tile, other_tile = (_gram_tile(matrix, rows, columns, dtype) for matrix in (a, b))
        # The default mode of cdist cancels catastrophically for nearly equal rows.
        squares = torch.cdist(tile, other_tile, compute_mode="donot_use_mm_for_euclid_dist").square()
        total = total + (squares if rows == columns else 2 * squares)
    return total


def squares_by_products(a: ScaledMatrices, b: ScaledMatrices) -> Float64[Tensor, "E E"]:
    """The same as `|A_i A_i^T|^2 + |A'_j A'_j^T|^2 - 2 |A_i A'_j^T|^2`; float64, since near experts cancel."""
    own, others = (
        [_squared_products(one[0], ScaledMatrices(one)) for one in bank.blocks(torch.float64)] for bank in (a, b)
    )
    pairs = torch.stack([_squared_products(one[0], b) for one in a.blocks(torch.float64)])
    return (torch.stack(own) + torch.cat(others) - 2 * pairs).clamp(min=0)


def _gram_tile(matrix: ScaledMatrices, rows: slice, columns: slice, dtype: torch.dtype) -> Float[Tensor, "E t"]:
    """`(M^T M)[rows, columns]` of every expert, flattened."""
    pairs = zip(matrix.blocks(dtype, columns=rows), matrix.blocks(dtype, columns=columns), strict=True)
    return torch.cat([(a.mT @ b).flatten(1) for a, b in pairs])


def _squared_products(one: Float[Tensor, "F d"], bank: ScaledMatrices) -> Float64[Tensor, " E"]:
    """`|A A'_j^T|_F^2` of one expert and every other, float64."""
    units, count = len(one), max(1, _TILE_BYTES // (8 * max(1, len(one)) * max(bank.weight.shape[1:])))
    squares = []
    for others in bank.blocks(torch.float64, count):
        products = one @ others.flatten(0, 1).T
        squares.append(products.square_().view(units, len(others), -1).sum(dim=(0, 2)))
    return torch.cat(squares)
