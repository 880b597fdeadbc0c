"""The action of the symmetries on a layer."""

from dataclasses import replace

from hf_moe_lmc.symmetry import MoeSymmetry

from .layer import MoeLayer


def act(symmetry: MoeSymmetry, layer: MoeLayer) -> MoeLayer:
    """`symmetry . layer`: experts, router rows and units move together, so the layer computes the same function.

    A left action: `act(g @ h, layer)` is `act(g, act(h, layer))`. Entries move and change sign; no weight is rounded.
    Source: arXiv:2509.11348, section 3.
    """
    if symmetry.shape != layer.symmetry_shape:
        raise ValueError(f"a symmetry of sizes {symmetry.shape} cannot act on a layer of sizes {layer.symmetry_shape}")
    shared = layer.shared_experts
    return replace(
        layer,
        router=layer.router.permute_experts(symmetry.experts) if layer.router else None,
        experts=layer.experts.permute_experts(symmetry.experts).permute_units(symmetry.units),
        shared_experts=shared.permute_units(symmetry.shared_units) if shared and symmetry.shared_units else None,
    )
