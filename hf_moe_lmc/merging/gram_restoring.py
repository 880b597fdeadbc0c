"""Gram restoring: a repair of the straight line, without data, that gives an expert's weights their directions back.

`|up|^2` summed over the units of an expert is the trace of its Gram matrix `up^T up`, `[H, H]`, which no order and no
signs of units change (arXiv:2509.11348, equation 11, compares experts by it). `preserve_norms` restores the norms, and
so the trace; here the whole matrix goes back to the line between the ends, of gate_proj and up_proj (with their biases
as one more column) and of down_proj, each by one `restoring_map` of the residual stream's directions.
"""

from dataclasses import replace

import torch
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank, MoeLayer

from .second_moments import restoring_map, second_moment


def restore_gram(merged: MoeLayer, reference: MoeLayer, other: MoeLayer, t: float) -> MoeLayer:
    """`merged` with the Gram matrices of its experts, routed and shared, at `(1 - t) G_0 + t G_1`, all three shrunk.

    The shrinkage is that of `second_moment`: the more units there are to a direction, the less.
    All three layers are taken with units of `|up| = |down|` where units have a free scale, as `merged` is given back.
    Costs one eigendecomposition of size H for every projection of every expert.

    Args:
        merged: the point t between two layers, in float32 or better.
        reference, other: the ends, of the same sizes, `other` aligned.
        t: in [0, 1].
    """
    group = reference.group
    shared, a, b = merged.shared_experts, reference.shared_experts, other.shared_experts
    return replace(
        merged,
        experts=_restored(merged.experts, reference.experts, other.experts, t, group.unit_scale_degree),
        shared_experts=_restored(shared, a, b, t, group.shared_unit_scale_degree) if shared and a and b else None,
    )


def _restored(merged: ExpertBank, a: ExpertBank, b: ExpertBank, t: float, degree: int) -> ExpertBank:
    merged, a, b = (bank.balance_units(degree) for bank in (merged, a, b))
    experts = [[_rows(bank, e) for bank in (merged, a, b)] for e in range(merged.num_experts)]
    moved = [{part: _moved(found[part], start[part], end[part], t) for part in found} for found, start, end in experts]
    rows = {part: torch.stack([expert[part] for expert in moved]) for part in moved[0]}
    width = merged.up_proj.shape[2]
    changed: dict[str, Tensor] = {"down_proj": rows["down"].mT}
    for part in ("gate", "up"):
        if part in rows:
            changed[f"{part}_proj"] = rows[part][..., :width]
            if rows[part].shape[2] > width:
                changed[f"{part}_bias"] = rows[part][..., width]
    return replace(merged, **changed)


def _rows(bank: ExpertBank, e: int) -> dict[str, Tensor]:
    """Those of expert e that a Gram matrix is made of, one of every unit: gate and up with their biases, down."""
    rows = {"down": bank.down_proj[e].T}
    for part, weight, bias in (("gate", bank.gate_proj, bank.gate_bias), ("up", bank.up_proj, bank.up_bias)):
        if weight is not None:
            rows[part] = weight[e] if bias is None else torch.cat([weight[e], bias[e, :, None]], dim=1)
    return rows


def _moved(found: Tensor, start: Tensor, end: Tensor, t: float) -> Tensor:
    wanted = torch.lerp(second_moment(start), second_moment(end), t)
    return (found.double() @ restoring_map(second_moment(found), wanted)).to(found)
