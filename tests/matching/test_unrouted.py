"""Orders of shared experts that are stored one by one, and of zero experts."""

from dataclasses import replace

import pytest
import torch

from hf_moe_lmc import align
from hf_moe_lmc.adapters import moe_layers
from hf_moe_lmc.matching import align_layers, layer_distance
from hf_moe_lmc.moe import MoeLayer, Router, act
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation
from tests import families
from tests.layers import LAYER_KINDS, bank, derangement, same_weights


def build(owner: str | None, seed: int = 0) -> MoeLayer:
    """Five routed experts; three shared ones, with router rows if they are their owner; or rows of zero experts."""
    layer = LAYER_KINDS["swiglu with biases"](seed=seed)
    generator = torch.Generator().manual_seed(seed)
    rows = Router(*(torch.randn(3, *shape, generator=generator, dtype=torch.float64) for shape in ((13,), ())))
    shared = bank(3, 6, 13, gated=True, bias=True, generator=generator, dtype=torch.float64)
    return replace(
        layer,
        group=replace(layer.group, router_translation=False, further_rows=owner),
        shared_experts=None if owner == "zero experts" else shared,
        further_rows=rows if owner else None,
    )


@pytest.mark.parametrize("owner", ["shared experts", "zero experts", None])
def test_orders_are_found_and_are_the_nearest(owner):
    layer, other = build(owner), build(owner, seed=1)
    planted = derangement(layer)
    assert not (planted.zero_experts or planted.shared_experts).is_identity
    found = align_layers(layer, act(planted, layer))
    assert found.symmetry == planted.inverse()
    assert same_weights(act(found.symmetry, act(planted, layer)), layer)
    assert found.distance_after == 0
    assert align_layers(layer, act(planted, layer), "units").distance_after > 1  # control: in their places

    nearest = align_layers(layer, other)
    for order in (Permutation(torch.tensor(p)) for p in ([1, 2, 0], [2, 0, 1], [1, 0, 2], [0, 2, 1], [2, 1, 0])):
        rows = {"zero_experts" if owner == "zero experts" else "shared_experts": order}
        elsewhere = act(replace(MoeSymmetry.identity(*other.symmetry_shape), **rows), other)
        stay = replace(nearest.symmetry, **dict.fromkeys(rows, Permutation.identity(3)))
        assert nearest.distance_after <= layer_distance(layer, act(stay, elsewhere))
    assert nearest.distance_after == pytest.approx(layer_distance(layer, act(nearest.symmetry, other)))


@pytest.mark.parametrize(("family", "part"), [("inkling", "shared_experts"), ("longcat_flash", "zero_experts")])
def test_they_are_saved_and_named(family, part, tmp_path):
    """Of real models; and a shared expert that moved is not said to be in its place."""
    reference, other = families.build(family), families.build(family)
    tensors = other.state_dict()
    specs = {spec.name: spec for spec in moe_layers(other)}
    for spec in specs.values():
        layer = spec.read(tensors)
        order = Permutation(torch.arange(layer.symmetry_shape[-1] or layer.symmetry_shape[2][0]).flip(0))
        moved = act(replace(MoeSymmetry.identity(*layer.symmetry_shape), **{part: order}), layer)
        tensors |= spec.write(moved, tensors)
    other.load_state_dict(tensors)
    found = align(reference, other)
    found.save_pretrained(tmp_path)
    loaded = type(found).from_pretrained(tmp_path)
    assert loaded.digest == found.digest
    for name, layer in loaded.layers.items():
        if name in specs:
            assert layer.distance_after == 0
            assert layer.distance_before > 1
            order = getattr(layer.symmetry, part).index
            assert torch.equal(order.flip(0), torch.arange(len(order)))
            assert (layer.evidence.label == "in_place") == (part == "zero_experts")
