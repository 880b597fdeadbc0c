"""Repair `stronger`: units that agree are averaged, of others the stronger one is kept."""

from dataclasses import replace

import pytest
import torch

from hf_moe_lmc.merging import repaired_layer
from hf_moe_lmc.moe import MoeLayer
from tests.layers import LAYER_KINDS, same_weights
from tests.matching.known_pairs import with_scales

KINDS = ["mlp, shared experts", "swiglu with biases", "swiglu, shared experts"]
HALF = (0.5, 0.5)


def strengthened(layer: MoeLayer, factor: float) -> MoeLayer:
    return replace(layer, experts=layer.experts.map(lambda tensor: factor * tensor))


@pytest.mark.parametrize("kind", KINDS)
def test_units_that_agree_are_averaged(kind):
    layer = LAYER_KINDS[kind](seed=0)
    other = layer.with_tensors({name: tensor + 0.1 for name, tensor in layer.tensors().items()})
    assert same_weights(repaired_layer([layer, other], HALF, ["stronger"]), repaired_layer([layer, other], HALF))


@pytest.mark.parametrize("kind", KINDS)
def test_of_units_that_disagree_the_stronger_one_is_kept(kind):
    """Whole, so in all its parts; the share counts; what belongs to no unit is averaged."""
    a, b = (LAYER_KINDS[kind](seed=seed, H=64) for seed in (0, 1))
    mean = repaired_layer([a, b], HALF)
    for factor, shares, kept in ((2.0, HALF, b), (0.5, HALF, a), (2.0, (0.9, 0.1), a)):
        b = strengthened(LAYER_KINDS[kind](seed=1, H=64), factor)
        kept = a if kept is a else b
        merged = repaired_layer([a, b], shares, ["stronger"])
        for name, tensor in merged.experts.tensors().items():
            assert torch.equal(tensor, getattr(kept.experts, name)) == (name != "down_bias"), name
        assert torch.equal(merged.router.weight, repaired_layer([a, b], shares).router.weight)
    assert not same_weights(mean, merged)


def test_one_unit_at_a_time():
    """Free scales decide neither whether units agree nor which is stronger."""
    a = LAYER_KINDS["swiglu"](seed=0)
    a = replace(a, group=replace(a.group, unit_scale_degree=1))
    flipped = torch.ones(a.experts.num_units, dtype=a.experts.up_proj.dtype)
    flipped[[1, 3]] = -3.0
    up, gate = (
        bank * sign[:, None] for bank, sign in ((a.experts.up_proj, flipped), (a.experts.gate_proj, flipped.sign()))
    )
    b = replace(a, experts=replace(a.experts, up_proj=up, gate_proj=gate))
    merged, mean = (repaired_layer([a, b], HALF, repairs).experts for repairs in (["stronger"], []))
    changed = (merged.up_proj != mean.up_proj).any(dim=2)
    assert changed[:, [1, 3]].all()
    assert changed.sum() == 2 * len(changed)
    assert torch.equal(merged.up_proj[changed], b.experts.up_proj[changed])
    small = replace(b, experts=with_scales(b.experts, 1, 3.0, seed=2))
    assert torch.equal(
        repaired_layer([a, small], HALF, ["stronger"]).experts.up_proj[changed], small.experts.up_proj[changed]
    )
