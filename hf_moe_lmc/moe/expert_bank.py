"""The experts of one layer, stacked."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.symmetry import Permutation, SignedPermutation
from hf_moe_lmc.workers import each

_ROWS = 64  # of a matrix, worked on together


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

    def gauge_scales(
        self, degree: int, outputs: Float[Tensor, " E"] | None = None, normalised: bool = False
    ) -> "UnitScales":
        """The scales that bring the bank into the gauge, in float32 or better: the same function, one form of it.

        In it `|up_f| = |down_f|` for every unit f: up_f times c, down_f divided by `c^degree`. up_f is the row of
        up_proj with its bias, down_f the column of down_proj. A unit that lacks either computes nothing, and gets the
        scale 0. For degree 0 units have no scale.

        Args:
            degree: see `SymmetryGroup.unit_scale_degree`.
            outputs: factors of the experts' outputs that go into down_proj.
            normalised: whether down_proj gets the positive factor that makes `sum_f |up_f|^(2 degree) |down_f|^2` 1,
                which does not depend on the scales of units.
        """
        up, down = self._unit_norms()
        factors = up.new_ones(len(up)) if outputs is None else outputs.to(up)
        down = down * factors.abs()[:, None]
        if normalised:
            norm = (up**degree * down).norm(dim=-1, keepdim=True)
            factors, down = (torch.where(norm > 0, x / norm, x) for x in (factors[:, None], down))
            factors = factors[:, 0]
        alive = (up > 0) & (down > 0) if degree else torch.ones_like(up, dtype=torch.bool)
        scale = torch.where(alive, (down / up) ** (1 / (1 + degree)), 0.0) if degree else torch.ones_like(up)
        return UnitScales(scale, torch.where(alive, factors[:, None] / scale**degree, 0.0), factors)

    def rescale(self, scales: "UnitScales") -> "ExpertBank":
        """The bank with these scales, in the wider dtype of both."""
        return replace(
            self,
            up_proj=self.up_proj * scales.up[..., None],
            down_proj=self.down_proj * scales.down[:, None],
            up_bias=None if self.up_bias is None else self.up_bias * scales.up,
            down_bias=None if self.down_bias is None else self.down_bias * scales.outputs[:, None],
        )

    def balance_units(self, degree: int) -> "ExpertBank":
        """The bank whose units f have `|up_f| = |down_f|`; see `gauge_scales`."""
        return self.rescale(self.gauge_scales(degree))

    def _unit_norms(self) -> tuple[Float[Tensor, "E F"], Float[Tensor, "E F"]]:
        dtype = torch.promote_types(self.up_proj.dtype, torch.float32)
        up, down = _row_norms(self.up_proj, dtype), _column_norms(self.down_proj, dtype)
        return (up if self.up_bias is None else torch.hypot(up, self.up_bias.to(dtype))), down


@dataclass(frozen=True)
class UnitScales:
    """Factors of the units of a bank, and of the outputs of its experts.

    Args:
        up: `[E, F]`, of the rows of up_proj and of up_bias.
        down: `[E, F]`, of the columns of down_proj.
        outputs: `[E]`, of down_bias; contained in `down`.
    """

    up: Float[Tensor, "E F"]
    down: Float[Tensor, "E F"]
    outputs: Float[Tensor, " E"]

    def expert(self, e: int) -> "UnitScales":
        """Those of one expert."""
        return UnitScales(self.up[e, None], self.down[e, None], self.outputs[e, None])


def _row_norms(matrices: Float[Tensor, "E m n"], dtype: torch.dtype) -> Float[Tensor, "E m"]:
    if matrices.device.type != "cpu":
        return torch.linalg.vector_norm(matrices, dim=2, dtype=dtype)
    norms = matrices.new_zeros(matrices.shape[:2], dtype=dtype)

    def fill(e: int) -> None:
        wide = matrices.new_empty(min(_ROWS, matrices.shape[1]), matrices.shape[2], dtype=dtype)  # stays in the cache
        for own, block in zip(norms[e].split(_ROWS), matrices[e].split(_ROWS), strict=True):
            torch.linalg.vector_norm(wide[: len(block)].copy_(block), dim=1, out=own)

    each(fill, range(len(matrices)))
    return norms


def _column_norms(matrices: Float[Tensor, "E m n"], dtype: torch.dtype) -> Float[Tensor, "E n"]:
    """Equal columns have equal norms, to the last bit, wherever they stand."""
    if matrices.device.type != "cpu":
        return torch.linalg.vector_norm(matrices, dim=1, dtype=dtype)
    squares = matrices.new_zeros(matrices.shape[0], matrices.shape[2], dtype=dtype)

    def add(e: int) -> None:
        wide = matrices.new_empty(min(_ROWS, matrices.shape[1]), matrices.shape[2], dtype=dtype)
        for block in matrices[e].split(_ROWS):
            rows = wide[: len(block)].copy_(block).square_()
            while (half := len(rows) // 2) > 0:  # torch sums vectorised columns in another order than the last ones
                if len(rows) % 2:
                    rows[0] += rows[-1]
                rows = rows[:half].add_(rows[half : 2 * half])
            squares[e] += rows[0]

    each(add, range(len(matrices)))
    return squares.sqrt()
