"""The symmetries of one Mixture-of-Experts layer."""

from dataclasses import dataclass

from .permutation import Permutation
from .signed_permutation import SignedPermutation


@dataclass(frozen=True)
class MoeSymmetry:
    """An element g = (sigma, (u_e)) of the wreath product `B_F wr S_E`, times one of `B_F' wr S_S` for shared experts.

    Slot e of `g.layer` holds expert `sigma[e]` of `layer`, router row included, with its units permuted by the signed
    permutation `u_e`. Its `SymmetryGroup` tells which signs and expert orders a layer admits. The law that makes this a
    left action is

        (g @ h).sigma = g.sigma @ h.sigma        (g @ h).u_e = g.u_e @ h.u_{g.sigma[e]}

    Source: arXiv:2509.11348 (group G(n), section 3; unit permutations inside an expert as in its step 2). Signs of
    gated units: up_proj row and down_proj column both times -1. Zero experts, which have no weights but a router row,
    have an order alone.

    Args:
        experts: expert order sigma, `[E]`.
        units: signed unit permutations u, `[E, F]`.
        shared_units: those of the always-active experts, `[S, F']`, or None without such experts.
        shared_experts: order of these, `[S]`, by default their own.
        zero_experts: order of the zero experts, `[Z]`, or None without.
    """

    experts: Permutation
    units: SignedPermutation
    shared_units: SignedPermutation | None = None
    shared_experts: Permutation | None = None
    zero_experts: Permutation | None = None

    def __post_init__(self) -> None:
        if self.shared_units is not None and self.shared_experts is None:
            object.__setattr__(self, "shared_experts", Permutation.identity(len(self.shared_units.signs)))

    @classmethod
    def identity(cls, experts: int, units: int, shared: tuple[int, int] | None = None, zero: int = 0) -> "MoeSymmetry":
        """The neutral element for E `experts`, F `units`, `shared` = (S, F') and Z `zero` experts."""
        return cls(
            Permutation.identity(experts),
            SignedPermutation.identity(experts, units),
            SignedPermutation.identity(*shared) if shared else None,
            zero_experts=Permutation.identity(zero) if zero else None,
        )

    @property
    def shape(self) -> tuple[int, int, tuple[int, int] | None, int]:
        """(E, F, (S, F') or None, Z)."""
        shared, zero = self.shared_units, self.zero_experts
        return (
            self.experts.size,
            self.units.permutation.size,
            None if shared is None else (shared.signs.shape[0], shared.permutation.size),
            zero.size if zero else 0,
        )

    @property
    def is_identity(self) -> bool:
        """Whether this element changes nothing."""
        parts = (self.experts, self.units, self.shared_units, self.shared_experts, self.zero_experts)
        return all(part is None or part.is_identity for part in parts)

    def inverse(self) -> "MoeSymmetry":
        """The element h with `g @ h = h @ g = identity`."""
        experts, units, order, zero = self.experts.inverse(), self.shared_units, self.shared_experts, self.zero_experts
        shared = order.inverse() if order else None
        return MoeSymmetry(
            experts,
            self.units.reorder(experts).inverse(),
            units.reorder(shared).inverse() if units and shared else None,
            shared,
            zero.inverse() if zero else None,
        )

    def __matmul__(self, other: "MoeSymmetry") -> "MoeSymmetry":
        if self.shape != other.shape:
            raise ValueError(f"cannot compose symmetries of sizes {self.shape} and {other.shape}")
        shared, zero = self.shared_experts, self.zero_experts
        return MoeSymmetry(
            self.experts @ other.experts,
            self.units @ other.units.reorder(self.experts),
            self.shared_units @ other.shared_units.reorder(shared)
            if shared and self.shared_units and other.shared_units
            else None,
            shared @ other.shared_experts if shared and other.shared_experts else None,
            zero @ other.zero_experts if zero and other.zero_experts else None,
        )
