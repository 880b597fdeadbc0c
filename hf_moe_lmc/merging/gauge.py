"""Free scales before a mean: the other layer takes those of the reference, so that none of its own counts.

A unit's up_proj row times c and its down_proj column divided by c is the same unit, but its mean with another unit is
not the same mean. In the gauge of `MoeLayer.in_gauge` it is. To take the mean there, and give it the scales of the
reference back, is to take the mean with the other layer in the scales of the reference.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import MoeLayer, Router, UnitScales

_KEPT = 2.0**-8  # as much as bfloat16 rounds: a rewrite would gain nothing


@dataclass(frozen=True)
class Rescaling:
    """Factors that bring a layer into the free scales of a reference.

    Args:
        experts, shared_experts: of the units; None where they have the reference's scales already.
        router: the rescaled one.
    """

    experts: UnitScales | None
    shared_experts: UnitScales | None
    router: Router | None

    def keeps(self, layer: MoeLayer) -> bool:
        """Whether it leaves `layer` as it is."""
        return self.experts is None and self.shared_experts is None and self.router is layer.router


def rescaling(reference: MoeLayer, other: MoeLayer) -> Rescaling:
    """The factors of `in_gauge_of`."""
    group = reference.group
    (scales, shared_scales), (own, own_shared) = reference.gauge_scales(), other.gauge_scales()
    return Rescaling(
        _change(own, scales, group.unit_scale_degree),
        _change(own_shared, shared_scales, group.shared_unit_scale_degree) if own_shared and shared_scales else None,
        _rescaled_router(reference, other),
    )


def in_gauge_of(reference: MoeLayer, other: MoeLayer) -> MoeLayer:
    """The function of `other` in the free scales of `reference`: those of units, experts and router.

    The result is the same for all layers that differ from `other` by such scales. Experts that all have the reference's
    scales already, up to 1/256, as those of siblings, stay bit for bit; else they come in float32 or better.

    Args:
        reference: whose scales are taken.
        other: aligned to it; of the same sizes and symmetries.
    """
    change, shared = rescaling(reference, other), other.shared_experts
    return replace(
        other,
        router=change.router,
        experts=other.experts.rescale(change.experts) if change.experts else other.experts,
        shared_experts=shared.rescale(change.shared_experts) if shared and change.shared_experts else shared,
    )


def _change(own: UnitScales, wanted: UnitScales, degree: int) -> UnitScales | None:
    """The factors from the scales `own` to those of the bank to which `wanted` belongs; None where all are 1."""
    up, outputs = _ratio(own.up, wanted.up), _ratio(own.outputs, wanted.outputs)
    if (up == 1).all() and (outputs == 1).all():
        return None
    return UnitScales(up, outputs[:, None] / up**degree, outputs)


def _rescaled_router(reference: MoeLayer, other: MoeLayer) -> Router | None:
    """The other's router with the reference's factors of experts and, where it is free, norm."""
    router, wanted = other.router, reference.router
    if router is None or wanted is None:
        return router
    if router.per_expert_scale is not None and wanted.per_expert_scale is not None:
        factors = _ratio(_widened(router.per_expert_scale), _widened(wanted.per_expert_scale))
        if (factors != 1).any():
            router = replace(router, per_expert_scale=router.per_expert_scale / factors)
    if reference.group.router_scale:
        factor = _ratio(_router_norm(reference), _router_norm(other))
        if factor != 1:
            bias = None if router.bias is None else router.bias * factor
            router = replace(router, weight=router.weight * factor, bias=bias)
    return router


def _router_norm(layer: MoeLayer) -> Float[Tensor, ""]:
    """The norm of weight and bias after translation."""
    router = replace(layer, group=replace(layer.group, router_scale=False)).router_in_gauge()
    if router is None:
        return torch.tensor(1.0)
    parts = [router.weight] if router.bias is None else [router.weight, router.bias]
    return torch.cat([_widened(part).flatten() for part in parts]).norm()


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _ratio(own: Float[Tensor, "*shape"], wanted: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`own / wanted`, and 1 where either is zero; 1 throughout if it is nearly that everywhere."""
    ratio = torch.where((own == 0) | (wanted == 0), 1.0, own / wanted)
    return torch.ones_like(ratio) if ((ratio - 1).abs() <= _KEPT).all() else ratio
