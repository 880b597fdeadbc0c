"""A live merge reaches every tensor, also of experts that are read as copies."""

import pytest
import torch

from hf_moe_lmc import align, merge
from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.alignment import apply_symmetries
from hf_moe_lmc.merging import interpolate
from tests import families


@pytest.mark.parametrize("family", ["switch_transformers", "vitpose_backbone", "doge", "ernie4_5_moe"])
def test_a_live_merge_is_the_interpolation_of_the_aligned_model(family):
    reference, other = (families.build(family, seed=seed) for seed in range(2))
    alignment = align(reference, other, "gate")
    moved = apply_symmetries(other.state_dict(), alignable_layers(other), alignment.symmetries)
    expected = dict(interpolate(reference.state_dict(), moved, 0.3))
    merged = merge(reference, other, alignment, 0.3).state_dict()
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())
