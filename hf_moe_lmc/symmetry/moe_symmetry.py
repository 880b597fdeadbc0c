"""The permutation symmetries of one Mixture-of-Experts layer."""

from dataclasses import dataclass

import torch

from .permutation import Permutation


@dataclass(frozen=True)
class MoeSymmetry:
    """An element g = (sigma, (u_e)) of the wreath product `S_F wr S_E`, times `S_F'` for every shared expert.

    Slot e of `g.layer` holds expert `sigma[e]` of `layer`, router row included, with its units reordered by `u_e`:
    unit f of slot e is unit `u_e[f]` of expert `sigma[e]`. The group law that makes this a left action is

        (g @ h).sigma = g.sigma @ h.sigma        (g @ h).u_e = g.u_e @ h.u_{g.sigma[e]}

    Source: arXiv:2509.11348 (group G(n), section 3; unit permutations inside an expert as in its step 2).

    Args:
        experts: expert order sigma, `[E]`.
        units: unit permutations u, `[E, F]`.
        shared_units: unit permutations of the always-active experts, `[S, F']`, or None without such experts.
    """

    experts: Permutation
    units: Permutation
    shared_units: Permutation | None = None

    @classmethod
    def identity(cls, experts: int, units: int, shared: tuple[int, int] | None = None) -> "MoeSymmetry":
        """The neutral element for E `experts`, F `units` and `shared` = (S, F')."""
        return cls(
            Permutation.identity(experts),
            Permutation.identity(experts, units),
            Permutation.identity(*shared) if shared else None,
        )

    @classmethod
    def random_derangement(
        cls,
        experts: int,
        units: int,
        shared: tuple[int, int] | None = None,
        generator: torch.Generator | None = None,
    ) -> "MoeSymmetry":
        """A random element that leaves no expert and no unit at its place; arguments as for `identity`."""
        return cls(
            Permutation.random_derangement(experts, generator=generator),
            Permutation.random_derangement(experts, units, generator=generator),
            Permutation.random_derangement(*shared, generator=generator) if shared else None,
        )

    @property
    def shape(self) -> tuple[int, int, tuple[int, int] | None]:
        """(E, F, (S, F') or None)."""
        shared = self.shared_units
        return (
            self.experts.size,
            self.units.size,
            None if shared is None else (shared.index.shape[0], shared.size),
        )

    @property
    def is_identity(self) -> bool:
        """Whether this element changes nothing."""
        return (
            self.experts.is_identity
            and self.units.is_identity
            and (self.shared_units is None or self.shared_units.is_identity)
        )

    def inverse(self) -> "MoeSymmetry":
        """The element h with `g @ h = h @ g = identity`."""
        experts = self.experts.inverse()
        return MoeSymmetry(
            experts,
            Permutation(experts.apply(self.units.index, dim=0)).inverse(),
            self.shared_units.inverse() if self.shared_units else None,
        )

    def __matmul__(self, other: "MoeSymmetry") -> "MoeSymmetry":
        if (self.shared_units is None) != (other.shared_units is None):
            raise ValueError("cannot compose a symmetry with shared experts and one without")
        return MoeSymmetry(
            self.experts @ other.experts,
            self.units @ Permutation(self.experts.apply(other.units.index, dim=0)),
            self.shared_units @ other.shared_units if self.shared_units and other.shared_units else None,
        )
