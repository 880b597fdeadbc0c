"""Repair `norms`: units and router rows at their averaged norms; needs no data.

The mean of two vectors of equal norm at an angle theta has norm cos(theta / 2): whatever two layers do not share is
averaged away, and a unit, whose output is a product of two or three such vectors, shrinks by the product of them
(variance collapse). Directions cannot be restored without data, lengths can: every orbit of the layer's symmetry group
gets back the length that lies on the straight line between its lengths at the endpoints.

Which lengths mean something follows from the scale symmetry of a unit, (up row, down column) -> (c up, down / c^d), of
degree d (`SymmetryGroup.unit_scale_degree`): only |up|^d |down| is a property of the function. Without one, each vector
has a length of its own. With n(v) = sum_i s_i |v_i| for the lengths of a vector at the endpoints:

    gate row (with its bias)              times  n(|gate|) / |gate_m|
    up row (with its bias), down column   times  r^(1/2d) and r^(1/2),  r = n(|up|^d |down|) / (|up_m|^d |down_m|)
      without a free scale (d = 0)        each times  n(|v|) / |v_m|
    router row (with its bias)            likewise, about the mean row if translation is a symmetry
    down bias, per-expert scale, selection bias: not rescaled

It generalises the row-wise rescaling of REPAIR (arXiv:2211.08403) to weights and to gated units. Permutations and signs
move orbits without changing a length, so the repair commutes with the group: repairing a scrambled pair gives the
scrambled repair.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank, Router

from .mean import weighted_sum
from .statistics import ExpertStatistics, LayerStatistics

# Below this share of the wanted length a direction is rounding noise, which is left as small as it is.
NOISE = 1e-6


def restore_norms(
    merged: ExpertBank,
    endpoints: Sequence[ExpertBank],
    shares: Sequence[float],
    scale_degree: int,
    statistics: ExpertStatistics | None = None,
) -> ExpertBank:
    """`merged`, the mean of `endpoints`, with its units at the averaged norms; see the head of this file.

    Args:
        merged: in float32 or better.
        endpoints, shares: of the mean, aligned.
        scale_degree: d.
        statistics: not needed.
    """
    up, down = _norm(merged.up_proj, merged.up_bias), merged.down_proj.norm(dim=1)
    ups = [_norm(bank.up_proj, bank.up_bias) for bank in endpoints]
    downs = [bank.down_proj.norm(dim=1) for bank in endpoints]
    if scale_degree:
        products = [u**scale_degree * d for u, d in zip(ups, downs, strict=True)]
        down_factor = _factor(products, shares, up**scale_degree * down).sqrt()
        up_factor = down_factor ** (1 / scale_degree)
    else:
        up_factor, down_factor = _factor(ups, shares, up), _factor(downs, shares, down)
    scaled = {"up_proj": merged.up_proj * up_factor[..., None], "down_proj": merged.down_proj * down_factor[:, None]}
    if merged.up_bias is not None:
        scaled["up_bias"] = merged.up_bias * up_factor
    if merged.gate_proj is not None:
        gates = [_norm(bank.gate_proj, bank.gate_bias) for bank in endpoints if bank.gate_proj is not None]
        factor = _factor(gates, shares, _norm(merged.gate_proj, merged.gate_bias))
        scaled["gate_proj"] = merged.gate_proj * factor[..., None]
        if merged.gate_bias is not None:
            scaled["gate_bias"] = merged.gate_bias * factor
    return replace(merged, **scaled)


def restore_router_norms(
    merged: Router,
    endpoints: Sequence[Router],
    shares: Sequence[float],
    translation: bool,
    statistics: LayerStatistics | None = None,
) -> Router:
    """`merged`, the mean of `endpoints`, with its rows at the averaged norms; see the head of this file.

    Args:
        merged: in float32 or better.
        endpoints, shares: of the mean, aligned.
        translation: whether it is a symmetry; norms are then those about the mean row.
        statistics: not needed.
    """
    rows = _rows(merged, translation)
    norms = [_rows(router, translation).norm(dim=1) for router in endpoints]
    change = _factor(norms, shares, rows.norm(dim=1))[:, None] - 1
    # Added to, not rebuilt from, the row: a factor of 1 leaves it alone bit for bit.
    added = rows * change
    return replace(
        merged,
        weight=merged.weight + added[:, : merged.weight.shape[1]],
        bias=None if merged.bias is None else merged.bias + added[:, -1],
    )


def _rows(router: Router, centred: bool) -> Float[Tensor, "E d"]:
    rows = router.weight if router.bias is None else torch.cat([router.weight, router.bias[:, None]], dim=1)
    return rows - rows.mean(dim=0) if centred else rows


def _norm(rows: Float[Tensor, "E F H"], bias: Float[Tensor, "E F"] | None) -> Float[Tensor, "E F"]:
    norm = rows.norm(dim=-1)
    return norm if bias is None else torch.hypot(norm, bias)


def _factor(lengths: Sequence[Tensor], shares: Sequence[float], length: Tensor) -> Tensor:
    wanted = weighted_sum(lengths, shares)
    return torch.where(length > NOISE * wanted, wanted / length, torch.ones_like(length))
