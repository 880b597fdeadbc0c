"""The experts of one layer, stacked."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.symmetry import Permutation, SignedPermutation


@dataclass(frozen=True)
class ExpertBank:
    """E experts of F units each between a hidden state of size H and an output of size D, mostly H.

    Without `gate_proj` an expert is `down(phi(up x + up_bias)) + down_bias`; with it, `down(phi(gate x, up x))`, mostly
    `down(phi(gate x) * (up x))` (gated, SwiGLU and kin). Shared experts are an `ExpertBank` too.

    Args:
        up_proj: `[E, F, H]`; row f belongs to unit f.
        down_proj: `[E, D, F]`; column f belongs to unit f.
        gate_proj: `[E, F, H]`, or None for experts that are not gated.
        up_bias, gate_bias: `[E, F]`, or None.
        down_bias: `[E, D]`, or None; belongs to the expert, not to a unit.
    """

    up_proj: Float[Tensor, "E F H"]
    down_proj: Float[Tensor, "E D F"]
    gate_proj: Float[Tensor, "E F H"] | None = None
    up_bias: Float[Tensor, "E F"] | None = None
    gate_bias: Float[Tensor, "E F"] | None = None
    down_bias: Float[Tensor, "E D"] | None = None

    @property
    def num_experts(self) -> int:
        """E."""
        return self.up_proj.shape[0]

    @property
    def num_units(self) -> int:
        """F."""
        return self.up_proj.shape[1]

    def signed_unit_terms(self) -> list[Float[Tensor, "E F _"]]:
        """Blocks `[E, F, d]` (views) of all that changes sign with a unit: up_proj, columns of down_proj, up_bias."""
        terms = [self.up_proj, self.down_proj.mT]
        return terms if self.up_bias is None else [*terms, self.up_bias[..., None]]

    def unsigned_unit_terms(self) -> list[Float[Tensor, "E F _"]]:
        """Blocks `[E, F, d]` (views) of all that a unit keeps under either sign: gate_proj, gate_bias."""
        terms = [] if self.gate_proj is None else [self.gate_proj]
        return terms if self.gate_bias is None else [*terms, self.gate_bias[..., None]]

    def tensors(self) -> dict[str, Tensor]:
        """Field name -> tensor, absent ones left out."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def map(self, function: Callable[[Tensor], Tensor]) -> "ExpertBank":
        """The bank with `function` applied to every tensor."""
        return replace(self, **{name: function(tensor) for name, tensor in self.tensors().items()})

    def permute_experts(self, experts: Permutation) -> "ExpertBank":
        """The bank whose expert e is expert `experts[e]` of this one; `experts` is `[E]`."""
        return self.map(lambda tensor: experts.apply(tensor, dim=0))

    def permute_units(self, units: SignedPermutation) -> "ExpertBank":
        """The bank whose unit f of expert e is unit `units[e, f]` of expert e of this one, sign included.

        Raises:
            ValueError: a sign is -1, but the experts are not gated, so that no sign is free.
        """
        if units.is_signed and self.gate_proj is None:
            raise ValueError("units of experts without gate_proj have no free sign")
        order = units.permutation
        return ExpertBank(
            up_proj=units.apply(self.up_proj, dim=1),
            down_proj=units.apply(self.down_proj, dim=2),
            gate_proj=None if self.gate_proj is None else order.apply(self.gate_proj, dim=1),
            up_bias=None if self.up_bias is None else units.apply(self.up_bias, dim=1),
            gate_bias=None if self.gate_bias is None else order.apply(self.gate_bias, dim=1),
            down_bias=self.down_bias,
        )

    def scale_outputs(self, factors: Float[Tensor, " E"]) -> "ExpertBank":
        """The bank whose output of expert e is `factors[e]` times that of this one."""
        bias = self.down_bias
        return replace(
            self,
            down_proj=self.down_proj * factors[:, None, None],
            down_bias=None if bias is None else bias * factors[:, None],
        )

    def balance_units(self, degree: int) -> "ExpertBank":
        """The bank whose units f have `|up_f| = |down_f|`, up_f times c and down_f divided by `c^degree`.

        up_f is the row of up_proj with its bias, down_f the column of down_proj. Units with a zero norm stay, as do all
        for degree 0.
        """
        if degree == 0:
            return self
        up, down = self._unit_norms()
        factor = torch.where((up > 0) & (down > 0), (down / up) ** (1 / (1 + degree)), 1.0)
        return replace(
            self,
            up_proj=self.up_proj * factor[..., None],
            down_proj=self.down_proj / factor[:, None] ** degree,
            up_bias=None if self.up_bias is None else self.up_bias * factor,
        )

    def normalise_outputs(self, degree: int) -> "ExpertBank":
        """Every down_proj times the positive number that makes `sum_f |up_f|^(2 degree) |down_f|^2` 1, or left zero.

        That sum does not depend on the scales that `balance_units` chooses.
        """
        up, down = self._unit_norms()
        norm = (up**degree * down).norm(dim=-1)
        return self.scale_outputs(torch.where(norm > 0, 1 / norm, 1.0))

    def _unit_norms(self) -> tuple[Float[Tensor, "E F"], Float[Tensor, "E F"]]:
        up = self.up_proj if self.up_bias is None else torch.cat([self.up_proj, self.up_bias[..., None]], dim=2)
        return up.norm(dim=2), self.down_proj.norm(dim=1)
