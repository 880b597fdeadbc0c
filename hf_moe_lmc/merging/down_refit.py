"""Least-squares refit of the down projections. That is distillation: it works nearly as well on random features."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank, MoeLayer

from .calibration import ExpertCalibration, LayerCalibration, repair_banks
from .conjugate_gradient import solve

SHRINKAGE = 0.01


def refit_down_proj(
    merged: MoeLayer, reference: MoeLayer, other: MoeLayer, t: float, calibration: LayerCalibration
) -> MoeLayer:
    """`merged` with the down_proj (and down_bias) that bring its experts' answers closest to the line of the ends'.

    Per expert, `E |down(units_t(x)) - (1 - t) f_0(x) - t f_1(x)|^2` over the calibration tokens is least, plus a ridge
    towards the down_proj of `merged` with 0.01 of the units' mean square. Source: PLeaS, arXiv:2407.02447.
    """
    return repair_banks(_refitted, merged, reference, other, t, calibration)


def refit_random_units(
    merged: MoeLayer, reference: MoeLayer, other: MoeLayer, t: float, calibration: LayerCalibration
) -> MoeLayer:
    """The control of `refit_down_proj`: the same fit, from zero, to random rows of gate and up of the same norms."""
    return repair_banks(_refitted_at_random, merged, reference, other, t, calibration)


def _refitted_at_random(
    merged: ExpertBank, a: ExpertBank, b: ExpertBank, t: float, calibration: ExpertCalibration
) -> ExpertBank:
    generator = torch.Generator().manual_seed(0)

    def redrawn(rows: Tensor) -> Tensor:
        drawn = torch.randn(rows.shape, generator=generator).to(rows)
        return drawn * (rows.norm(dim=-1) / drawn.norm(dim=-1))[..., None]

    rows = {name: redrawn(rows) for name, rows in merged.tensors().items() if name in ("gate_proj", "up_proj")}
    zero = {name: torch.zeros_like(down) for name, down in merged.tensors().items() if name.startswith("down")}
    return _refitted(replace(merged, **rows, **zero), a, b, t, calibration)


def _refitted(merged: ExpertBank, a: ExpertBank, b: ExpertBank, t: float, calibration: ExpertCalibration) -> ExpertBank:
    fitted = [_change(merged, a, b, t, calibration, e) for e in range(merged.num_experts)]
    change = torch.stack(fitted).to(merged.down_proj)
    units, bias = merged.num_units, merged.down_bias
    return replace(
        merged,
        down_proj=merged.down_proj + change[:, :units].mT,
        down_bias=None if bias is None else bias + change[:, units],
    )


def _change(
    merged: ExpertBank, a: ExpertBank, b: ExpertBank, t: float, calibration: ExpertCalibration, e: int
) -> Float[Tensor, "d D"]:
    """What to add to the columns of expert e, and to its bias in a last row if it has one."""
    units, weights = calibration.units(merged, e).double(), calibration.weights_of(merged, e).double()
    if merged.down_bias is not None:
        units = torch.cat([units, units.new_ones(len(units), 1)], dim=1)
    wanted = torch.lerp(calibration.answers(a, e), calibration.answers(b, e), t)
    missing = (wanted - calibration.answers(merged, e)).double()
    ridge = SHRINKAGE * (weights * units.square()).sum(dim=0).mean()
    return solve(lambda change: units.T @ (weights * (units @ change)) + ridge * change, units.T @ (weights * missing))
