"""Batches of signed permutations: the symmetries of units whose sign is free."""

from dataclasses import dataclass

import torch
from jaxtyping import Int8
from torch import Tensor

from .permutation import Permutation


@dataclass(frozen=True, eq=False)
class SignedPermutation:
    """A batch of signed permutations (p, s) of n elements, acting as `((p, s).w)[i] = s[i] w[p[i]]`.

    The hyperoctahedral group; a left action of the product `((p, s) @ (q, r))[i] = (q[p[i]], s[i] r[p[i]])`.

    Args:
        permutation: p, `[*batch, n]`.
        signs: s, `[*batch, n]`, each 1 or -1.
    """

    permutation: Permutation
    signs: Int8[Tensor, "*batch n"]

    def __post_init__(self) -> None:
        if self.signs.shape != self.permutation.index.shape or not (self.signs.abs() == 1).all():
            raise ValueError(f"signs must be 1 or -1, one per element of shape {tuple(self.permutation.index.shape)}")

    @classmethod
    def unsigned(cls, permutation: Permutation) -> "SignedPermutation":
        """`permutation` with all signs 1."""
        return cls(permutation, torch.ones_like(permutation.index, dtype=torch.int8))

    @classmethod
    def identity(cls, *shape: int) -> "SignedPermutation":
        """The neutral element; `shape` is `(*batch, n)`."""
        return cls.unsigned(Permutation.identity(*shape))

    @classmethod
    def random_derangement(
        cls, *shape: int, signed: bool = True, generator: torch.Generator | None = None
    ) -> "SignedPermutation":
        """A uniform derangement, with uniform signs if `signed`; `shape` is `(*batch, n)`."""
        permutation = Permutation.random_derangement(*shape, generator=generator)
        if not signed:
            return cls.unsigned(permutation)
        return cls(permutation, (2 * torch.randint(2, shape, generator=generator) - 1).to(torch.int8))

    @property
    def is_identity(self) -> bool:
        """Whether every element of the batch is the neutral one."""
        return self.permutation.is_identity and not self.is_signed

    @property
    def is_signed(self) -> bool:
        """Whether any sign is -1."""
        return bool((self.signs < 0).any())

    def apply(self, tensor: Tensor, dim: int) -> Tensor:
        """As `Permutation.apply`, then each entry along `dim` times its sign; exact in every floating-point format."""
        permuted = self.permutation.apply(tensor, dim)
        if not self.is_signed:
            return permuted
        batch = self.signs.ndim - 1
        shape = [*self.signs.shape[:-1], *[1] * (tensor.ndim - batch)]
        shape[dim] = self.signs.shape[-1]
        return permuted.mul_(self.signs.to(tensor).reshape(shape))

    def reorder(self, batch: Permutation) -> "SignedPermutation":
        """The batch whose entry e is entry `batch[e]` of this one; for a batch of one axis."""
        return SignedPermutation(
            Permutation(batch.apply(self.permutation.index, dim=0)), batch.apply(self.signs, dim=0)
        )

    def inverse(self) -> "SignedPermutation":
        """The element h with `g @ h = h @ g = identity`."""
        permutation = self.permutation.inverse()
        return SignedPermutation(permutation, self.signs.take_along_dim(permutation.index, dim=-1))

    def __matmul__(self, other: "SignedPermutation") -> "SignedPermutation":
        signs = self.signs * other.signs.take_along_dim(self.permutation.index, dim=-1)
        return SignedPermutation(self.permutation @ other.permutation, signs)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, SignedPermutation)
            and self.permutation == other.permutation
            and torch.equal(self.signs, other.signs)
        )
