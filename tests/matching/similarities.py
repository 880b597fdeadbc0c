"""Similarity matrices of every kind that a solver may meet, seeded."""

import torch
from torch import Tensor

KINDS = (
    "gaussian",
    "siblings",
    "half siblings",
    "heavy rows",
    "heavy columns",
    "badly scaled",
    "rank one",
    "few values",
    "duplicate rows and columns",
    "near ties",
    "negative",
    "constant",
    "zero",
)


def similarity(kind: str, n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    units, others, order = draw(n, n // 2 + 1), draw(n, n // 2 + 1), torch.randperm(n, generator=generator)
    spread = (0.5 * draw(n, 1)).exp()
    matrix = {
        "gaussian": lambda: draw(n, n),
        "siblings": lambda: units * spread @ (units * spread + 0.1 * others)[order].T,
        "half siblings": lambda: units * spread @ torch.cat([(units * spread)[: n // 2], others[n // 2 :]])[order].T,
        "heavy rows": lambda: units * spread**3 @ others.T,
        "heavy columns": lambda: units @ (others * spread**3).T,
        "badly scaled": lambda: draw(n, n) * 10.0 ** (6 * draw(1)).clamp(-12, 12),
        "rank one": lambda: draw(n, 1) @ draw(1, n),
        "few values": lambda: draw(n, n).round(),
        "duplicate rows and columns": lambda: draw(n, n)[order // 2][:, order.flip(0) // 3],
        "near ties": lambda: draw(n, n)[order // 4][:, order.flip(0) // 4] + 1e-6 * draw(n, n),
        "negative": lambda: -draw(n, n).abs() - 10,
        "constant": lambda: torch.full((n, n), -1.7, dtype=torch.float64),
        "zero": lambda: torch.zeros(n, n, dtype=torch.float64),
    }[kind]()
    return matrix.to(dtype)
