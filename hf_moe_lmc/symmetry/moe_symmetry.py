"""The symmetries of one Mixture-of-Experts layer."""

from dataclasses import dataclass

from .permutation import Permutation
from .signed_permutation import SignedPermutation


@dataclass(frozen=True)
class MoeSymmetry:
    """An element g = (sigma, (u_e)) of the wreath product `B_F wr S_E`, times `B_F'` for every shared expert.

    Slot e of `g.layer` holds expert `sigma[e]` of `layer`, router row included, with its units permuted by the signed
    permutation `u_e`. Its `SymmetryGroup` tells which signs and expert orders a layer admits. The law that makes this a
    left action is

        (g @ h).sigma = g.sigma @ h.sigma        (g @ h).u_e = g.u_e @ h.u_{g.sigma[e]}

    Source: arXiv:2509.11348 (group G(n), section 3; unit permutations inside an expert as in its step 2). Signs of
    gated units: up_proj row and down_proj column both times -1.

    Args:
        experts: expert order sigma, `[E]`.
        units: signed unit permutations u, `[E, F]`.
        shared_units: those of the always-active experts, `[S, F']`, or None without such experts.
    """

    experts: Permutation
    units: SignedPermutation
    shared_units: SignedPermutation | None = None

    @classmethod
    def identity(cls, experts: int, units: int, shared: tuple[int, int] | None = None) -> "MoeSymmetry":
        """The neutral element for E `experts`, F `units` and `shared` = (S, F')."""
        return cls(
            Permutation.identity(experts),
            SignedPermutation.identity(experts, units),
            SignedPermutation.identity(*shared) if shared else None,
        )

    @property
    def shape(self) -> tuple[int, int, tuple[int, int] | None]:
        """(E, F, (S, F') or None)."""
        shared = self.shared_units
        return (
            self.experts.size,
            self.units.permutation.size,
            None if shared is None else (shared.signs.shape[0], shared.permutation.size),
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
        shared = self.shared_units
        return MoeSymmetry(experts, self.units.reorder(experts).inverse(), shared.inverse() if shared else None)

    def __matmul__(self, other: "MoeSymmetry") -> "MoeSymmetry":
        if (self.shared_units is None) != (other.shared_units is None):
            raise ValueError("cannot compose a symmetry with shared experts and one without")
        return MoeSymmetry(
            self.experts @ other.experts,
            self.units @ other.units.reorder(self.experts),
            self.shared_units @ other.shared_units if self.shared_units and other.shared_units else None,
        )
