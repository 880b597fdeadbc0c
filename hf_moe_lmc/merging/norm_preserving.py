"""Norm-preserving interpolation: a repair of the straight line that needs no data.

The mean of two vectors of equal norm at an angle theta has norm cos(theta / 2): whatever two layers do not share is
averaged away, and a unit, whose answer is a product of two or three such vectors, shrinks by the product of them
(variance collapse). Directions cannot be restored without data, lengths can: every orbit of the layer's symmetry group
gets back the length that lies on the straight line between its lengths at the ends.

Which lengths mean something follows from the scale symmetry of a unit, (up row, down column) -> (c up, down / c^d), of
degree d (`SymmetryGroup.unit_scale_degree`): only |up|^d |down| is a property of the function. Without one, each vector
has a length of its own. With n_t(v) = (1 - t) v_0 + t v_1 for a length v of the ends:

    gate row (with its bias)              times  n_t(|gate|) / |gate_t|
    up row (with its bias), down column   times  r^(1/2d) and r^(1/2),  r = n_t(|up|^d |down|) / (|up_t|^d |down_t|)
      without a free scale (d = 0)        each times  n_t(|v|) / |v_t|
    router row (with its bias)            likewise, about the line's mean row if translation is a symmetry
    down bias, per-expert scale, selection bias: not rescaled

Permutations and signs move orbits without changing a length, so the repair commutes with the group: repairing a
scrambled pair gives the scrambled repair. At t = 0 and t = 1 every factor is exactly 1.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank, MoeLayer, Router

# Below this share of the wanted length a direction is rounding noise, which is left as small as it is.
NOISE = 1e-6


def preserve_norms(merged: MoeLayer, reference: MoeLayer, other: MoeLayer, t: float) -> MoeLayer:
    """`merged`, the point t between two layers, with its units and router rows at their interpolated norms.

    The formula stands at the head of this file; it generalises the row-wise rescaling of REPAIR (arXiv:2211.08403)
    to weights and to gated units, without data.

    Args:
        merged: the layer to repair, in float32 or better.
        reference, other: the ends, of the same sizes, `other` aligned.
        t: in [0, 1].
    """
    group = reference.group
    router, first, last = merged.router, reference.router, other.router
    shared, a, b = merged.shared_experts, reference.shared_experts, other.shared_experts
    return replace(
        merged,
        router=_router(router, first, last, t, group.router_translation) if router and first and last else None,
        experts=_experts(merged.experts, reference.experts, other.experts, t, group.unit_scale_degree),
        shared_experts=_experts(shared, a, b, t, group.shared_unit_scale_degree) if shared and a and b else None,
    )


def interpolate_experts(reference: ExpertBank, other: ExpertBank, t: float, degree: int) -> ExpertBank:
    """`(1 - t) reference + t other` with the norms of `preserve_norms`, computed and given in float32 or better.

    Args:
        reference, other: the ends, `other` aligned.
        t: in [0, 1].
        degree: `SymmetryGroup.unit_scale_degree`.
    """
    a, b = reference.map(_widened), other.map(_widened)
    line = {name: torch.lerp(tensor, b.tensors()[name], t) for name, tensor in a.tensors().items()}
    return _experts(replace(a, **line), a, b, t, degree)


def interpolate_router(reference: Router, other: Router, t: float, centred: bool) -> Router:
    """As `interpolate_experts`, for routers; `centred` where translation is a symmetry."""
    a, b = reference.map(_widened), other.map(_widened)
    line = {name: torch.lerp(tensor, b.tensors()[name], t) for name, tensor in a.tensors().items()}
    return _router(replace(a, **line), a, b, t, centred)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _experts(merged: ExpertBank, a: ExpertBank, b: ExpertBank, t: float, degree: int) -> ExpertBank:
    ends = [(_norm(end.up_proj, end.up_bias), end.down_proj.norm(dim=1)) for end in (a, b)]
    up, down = _norm(merged.up_proj, merged.up_bias), merged.down_proj.norm(dim=1)
    if degree:
        start, end = (up_end**degree * down_end for up_end, down_end in ends)
        down_factor = _factor(start, end, up**degree * down, t).sqrt()
        up_factor = down_factor ** (1 / degree)
    else:
        up_factor, down_factor = (
            _factor(start, end, found, t) for start, end, found in zip(*ends, (up, down), strict=True)
        )
    scaled = {"up_proj": merged.up_proj * up_factor[..., None], "down_proj": merged.down_proj * down_factor[:, None]}
    if merged.up_bias is not None:
        scaled["up_bias"] = merged.up_bias * up_factor
    if merged.gate_proj is not None and a.gate_proj is not None and b.gate_proj is not None:
        found = _norm(merged.gate_proj, merged.gate_bias)
        factor = _factor(_norm(a.gate_proj, a.gate_bias), _norm(b.gate_proj, b.gate_bias), found, t)
        scaled["gate_proj"] = merged.gate_proj * factor[..., None]
        if merged.gate_bias is not None:
            scaled["gate_bias"] = merged.gate_bias * factor
    return replace(merged, **scaled)


def _router(merged: Router, a: Router, b: Router, t: float, centred: bool) -> Router:
    rows, start, end = (_rows(router, centred) for router in (merged, a, b))
    change = _factor(start.norm(dim=1), end.norm(dim=1), rows.norm(dim=1), t)[:, None] - 1
    # Added to, not rebuilt from, the row: a factor of 1 leaves it alone bit for bit.
    moved = rows * change
    return replace(
        merged,
        weight=merged.weight + moved[:, : merged.weight.shape[1]],
        bias=None if merged.bias is None else merged.bias + moved[:, -1],
    )


def _rows(router: Router, centred: bool) -> Float[Tensor, "E d"]:
    rows = router.weight if router.bias is None else torch.cat([router.weight, router.bias[:, None]], dim=1)
    return rows - rows.mean(dim=0) if centred else rows


def _norm(rows: Float[Tensor, "E F H"], bias: Float[Tensor, "E F"] | None) -> Float[Tensor, "E F"]:
    norm = rows.norm(dim=-1)
    return norm if bias is None else torch.hypot(norm, bias)


def _factor(start: Tensor, end: Tensor, found: Tensor, t: float) -> Tensor:
    wanted = torch.lerp(start, end, t)
    return torch.where(found > NOISE * wanted, wanted / found, torch.ones_like(found))
