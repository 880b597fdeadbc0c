"""One Mixture-of-Experts layer, and the action of the symmetries on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hf_moe_lmc.symmetry import MoeSymmetry, Permutation

from .expert_bank import ExpertBank, UnitScales
from .router import Router
from .symmetry_group import SymmetryGroup


@dataclass(frozen=True)
class MoeLayer:
    """A router, the experts it chooses from, and the shared experts that every token passes.

    A dense MLP among such layers is a layer without router, of one expert.

    Args:
        router: one row per expert; None where it does not choose.
        experts: the routed experts.
        shared_experts: the always-active experts (DeepSeekMoE), or None.
        group: the symmetries that the layer admits.
        further_rows: the rows of the router after those of the routed experts; `SymmetryGroup.further_rows` says whose.
    """

    router: Router | None
    experts: ExpertBank
    shared_experts: ExpertBank | None = None
    group: SymmetryGroup = field(default_factory=SymmetryGroup)
    further_rows: Router | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the layer under names such as `router.weight` and `shared_experts.down_proj`."""
        names = ("router", "experts", "shared_experts", "further_rows")
        parts: dict[str, Router | ExpertBank | None] = {name: getattr(self, name) for name in names}
        return {
            f"{part}.{name}": tensor
            for part, owner in parts.items()
            if owner is not None
            for name, tensor in owner.tensors().items()
        }

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "MoeLayer":
        """The layer that has these tensors instead of its own; names as in `tensors()`."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, field_name = name.partition(".")
            parts.setdefault(part, {})[field_name] = tensor
        return replace(self, **{part: replace(getattr(self, part), **own) for part, own in parts.items()})

    def to(self, dtype: torch.dtype) -> "MoeLayer":
        """The layer in another dtype; tensors that have it already are not copied."""

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(dtype)

        shared, further = self.shared_experts, self.further_rows
        return replace(
            self,
            router=self.router.map(cast) if self.router else None,
            experts=self.experts.map(cast),
            shared_experts=shared.map(cast) if shared else None,
            further_rows=further.map(cast) if further else None,
        )

    def in_gauge(self) -> "MoeLayer":
        """The layer in its gauge: of all layers that differ by translations and scales alone, the same one.

        Router rows, and selection biases, have mean zero over experts; the router has norm 1; factors of experts are in
        down_proj, which has the norm of `ExpertBank.gauge_scales` where a norm follows; every unit has
        `|up_proj row, up_bias| = |down_proj column|`. Each only where it is a symmetry. Rounded, in float32 or better.
        """
        scales, shared_scales = self.gauge_scales()
        shared = self.shared_experts
        return replace(
            self,
            router=self.router_in_gauge(),
            experts=self.experts.rescale(scales),
            shared_experts=shared.rescale(shared_scales) if shared and shared_scales else None,
        )

    def router_in_gauge(self) -> Router | None:
        """The router of `in_gauge`."""
        router, group = self.router, self.group
        if router is None:
            return None
        if group.router_translation:
            bias = router.bias
            router = replace(
                router,
                weight=router.weight - router.weight.mean(dim=0),
                bias=None if bias is None else bias - bias.mean(),
            )
        if group.selection_bias_constant and router.selection_bias is not None:
            router = replace(router, selection_bias=router.selection_bias - router.selection_bias.mean())
        if router.per_expert_scale is not None:
            router = replace(router, per_expert_scale=torch.ones_like(router.per_expert_scale))
        return router.normalised() if group.router_scale else router

    def gauge_scales(self) -> tuple[UnitScales, UnitScales | None]:
        """The scales that bring the experts, and the shared experts, into the gauge."""
        group, shared = self.group, self.shared_experts
        factors = self.router.per_expert_scale if self.router else None
        return (
            self.experts.gauge_scales(group.unit_scale_degree, factors, group.expert_output_scale),
            shared.gauge_scales(group.shared_unit_scale_degree) if shared else None,
        )

    @property
    def symmetry_shape(self) -> tuple[int, int, tuple[int, int] | None, int]:
        """(E, F, (S, F') or None, Z): the arguments that `MoeSymmetry.identity` and its kin take for this layer."""
        shared, further = self.shared_experts, self.further_rows
        return (
            self.experts.num_experts,
            self.experts.num_units,
            None if shared is None else (shared.num_experts, shared.num_units),
            len(further.weight) if further and self.group.further_rows == "zero experts" else 0,
        )

    def reorder_unrouted(self, shared: Permutation | None, zero: Permutation | None) -> "MoeLayer":
        """The layer with its shared experts, and its zero experts, in other orders, router rows included."""
        shared, zero = (None if order is None or order.is_identity else order for order in (shared, zero))
        order = {"shared experts": shared, "zero experts": zero}.get(self.group.further_rows or "")
        experts, rows = self.shared_experts, self.further_rows
        return replace(
            self,
            shared_experts=experts.permute_experts(shared) if experts and shared else experts,
            further_rows=rows.permute_experts(order) if rows and order else rows,
        )


def act(symmetry: MoeSymmetry, layer: MoeLayer) -> MoeLayer:
    """`symmetry . layer`: experts, router rows and units permuted together, so that the function stays the same.

    A left action: `act(g @ h, layer)` is `act(g, act(h, layer))`. Entries change place and sign; none is rounded.
    Source: arXiv:2509.11348, section 3.
    """
    if symmetry.shape != layer.symmetry_shape:
        raise ValueError(f"a symmetry of sizes {symmetry.shape} cannot act on a layer of sizes {layer.symmetry_shape}")
    layer = layer.reorder_unrouted(symmetry.shared_experts, symmetry.zero_experts)
    shared = layer.shared_experts
    return replace(
        layer,
        router=layer.router.permute_experts(symmetry.experts) if layer.router else None,
        experts=layer.experts.permute_experts(symmetry.experts).permute_units(symmetry.units),
        shared_experts=shared.permute_units(symmetry.shared_units) if shared and symmetry.shared_units else None,
    )
