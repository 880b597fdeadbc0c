"""Batches of permutations as index tensors."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes


@dataclass(frozen=True, eq=False)
class Permutation:
    """A batch of permutations p of n elements, acting by the gather convention `(p.w)[i] = w[p[i]]`.

    The action is a left action of the product `@`: `(p @ q).w = p.(q.w)`, that is `(p @ q)[i] = q[p[i]]`.

    Args:
        index: `[*batch, n]`, int64; every row holds 0..n-1 once.

    Raises:
        ValueError: a row of `index` is not a permutation.
    """

    index: Int[Tensor, "*batch n"]

    def __post_init__(self) -> None:
        expected = torch.arange(self.size, device=self.index.device).expand_as(self.index)
        if not torch.equal(self.index.sort(dim=-1).values, expected):
            raise ValueError(f"index of shape {tuple(self.index.shape)} does not hold 0..{self.size - 1} once per row")

    @classmethod
    def identity(cls, *shape: int) -> "Permutation":
        """The neutral element; `shape` is `(*batch, n)`."""
        return cls(torch.arange(shape[-1]).repeat(*shape[:-1], 1).reshape(shape))

    @classmethod
    def random(cls, *shape: int, generator: torch.Generator | None = None) -> "Permutation":
        """Independent uniform permutations; `shape` is `(*batch, n)`."""
        return cls(torch.rand(shape, generator=generator, dtype=torch.float64).argsort(dim=-1))

    @classmethod
    def random_derangement(cls, *shape: int, generator: torch.Generator | None = None) -> "Permutation":
        """Independent uniform permutations without a fixed point, by rejection; `shape` is `(*batch, n)`, n >= 2."""
        n = shape[-1]
        if n < 2:
            raise ValueError(f"there is no derangement of {n} element(s)")
        rows = cls.random(*shape, generator=generator).index.reshape(-1, n)
        while (fixed := (rows == torch.arange(n)).any(dim=-1)).any():
            rows[fixed] = cls.random(int(fixed.sum()), n, generator=generator).index
        return cls(rows.reshape(shape))

    @property
    def size(self) -> int:
        """n, the number of elements permuted."""
        return self.index.shape[-1]

    @property
    def is_identity(self) -> bool:
        """Whether every permutation of the batch is the neutral element."""
        return torch.equal(self.index, torch.arange(self.size, device=self.index.device).expand_as(self.index))

    def apply(self, tensor: Tensor, dim: int) -> Tensor:
        """`out[*b, .., i, ..] = tensor[*b, .., p[*b, i], ..]` with i on axis `dim`; no entry is rounded.

        Args:
            tensor: `[*batch, ..., n, ...]`, its leading axes being the batch axes of this permutation.
            dim: the non-negative axis of length n, counted in `tensor`.
        """
        batch, index = self.index.ndim - 1, self.index.to(tensor.device)
        if batch == 0:
            return tensor.index_select(dim, index)
        if dim == batch:
            # Whole rows, gathered out of all batches at once: an order faster than entry by entry.
            rows = index.flatten(0, -2)
            rows = rows + self.size * torch.arange(len(rows), device=index.device)[:, None]
            return tensor.flatten(0, dim).index_select(0, rows.flatten()).view(tensor.shape)
        if tensor.device.type == "cpu" and not tensor.requires_grad:
            return _take(tensor, index, dim)
        shape = [*index.shape[:-1], *[1] * (tensor.ndim - batch)]
        shape[dim] = self.size
        return tensor.gather(dim, index.reshape(shape).expand(tensor.shape))

    def inverse(self) -> "Permutation":
        """The permutation q with `p @ q = q @ p = identity`."""
        return Permutation(self.index.argsort(dim=-1))

    def __matmul__(self, other: "Permutation") -> "Permutation":
        return Permutation(other.index.take_along_dim(self.index, dim=-1))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Permutation) and torch.equal(self.index, other.index)


def _take(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    """`tensor.gather(...)` of `Permutation.apply`, several times as fast: numpy moves words, whatever they mean."""
    words, permuted = WORDS[tensor.itemsize], torch.empty(tensor.shape, dtype=tensor.dtype)
    source, target, order = tensor.view(words).numpy(), permuted.view(words).numpy(), index.numpy()
    for batch in np.ndindex(order.shape[:-1]):
        # Without a mode, numpy checks every index, and buffers.
        np.take(source[batch], order[batch], axis=dim - len(batch), out=target[batch], mode="clip")
    return permuted
