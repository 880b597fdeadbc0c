"""Repair `gram`: experts at their averaged Gram matrices; needs no data.

`|up|^2` summed over the units of an expert is the trace of its Gram matrix `up^T up`, `[H, H]`, which no order and no
signs of units change (arXiv:2509.11348, equation 11, compares experts by it). `norms` restores the norms, and so the
trace; here the whole matrix goes back to the mean of those of the endpoints, of gate_proj and up_proj (with their
biases as one more column) and of down_proj, each by one `restoring_map` of the residual stream's directions.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank

from .mean import weighted_sum
from .second_moments import restoring_map, second_moment
from .statistics import ExpertStatistics


def restore_gram(
    merged: ExpertBank,
    endpoints: Sequence[ExpertBank],
    shares: Sequence[float],
    scale_degree: int,
    statistics: ExpertStatistics | None = None,
) -> ExpertBank:
    """`merged` with the Gram matrices of its experts at `sum_i s_i G_i`, all of them shrunk as `second_moment` does.

    All banks are taken with units of `|up| = |down|` where units have a free scale, as `merged` is given back. Costs
    one eigendecomposition of size H for every projection of every expert.

    Args:
        merged: the mean of `endpoints`, in float32 or better.
        endpoints, shares: of the mean, aligned.
        scale_degree: `SymmetryGroup.unit_scale_degree`.
        statistics: not needed.
    """
    merged, endpoints = merged.balance_units(scale_degree), [bank.balance_units(scale_degree) for bank in endpoints]
    experts = [_expert(merged, endpoints, shares, e) for e in range(merged.num_experts)]
    rows = {part: torch.stack([expert[part] for expert in experts]) for part in experts[0]}
    width = merged.up_proj.shape[2]
    changed: dict[str, Tensor] = {"down_proj": rows["down"].mT}
    for part in ("gate", "up"):
        if part in rows:
            changed[f"{part}_proj"] = rows[part][..., :width]
            if rows[part].shape[2] > width:
                changed[f"{part}_bias"] = rows[part][..., width]
    return replace(merged, **changed)


def _expert(merged: ExpertBank, endpoints: Sequence[ExpertBank], shares: Sequence[float], e: int) -> dict[str, Tensor]:
    """The rows of expert e of `merged` with the wanted moments."""
    own, others = _rows(merged, e), [_rows(bank, e) for bank in endpoints]
    restored = {}
    for part, rows in own.items():
        wanted = weighted_sum([second_moment(other[part]) for other in others], shares)
        restored[part] = (rows.double() @ restoring_map(second_moment(rows), wanted)).to(rows)
    return restored


def _rows(bank: ExpertBank, e: int) -> dict[str, Tensor]:
    """The rows of expert e that a Gram matrix is made of, one of every unit: gate and up with their biases, down."""
    rows = {"down": bank.down_proj[e].T}
    for part, weight, bias in (("gate", bank.gate_proj, bank.gate_bias), ("up", bank.up_proj, bank.up_bias)):
        if weight is not None:
            rows[part] = weight[e] if bias is None else torch.cat([weight[e], bias[e, :, None]], dim=1)
    return rows
