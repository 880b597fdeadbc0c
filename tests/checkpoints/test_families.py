"""Every family that `save_pretrained` can write, on disk and back."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_moe_lmc.alignment import align, apply, open_checkpoint, scramble
from hf_moe_lmc.checkpoints import Checkpoint
from tests import families

# How a checkpoint may have been saved.
LAYOUTS = {
    "sharded": {"max_shard_size": "100KB"},
    "single": {},
    "fused": {"save_original_format": False},
}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def stored(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {key: entry.read() for key, entry in checkpoint.stored.items()}


def check_reading(model: PreTrainedModel, folder: Path) -> None:
    """Every tensor, under its module name, is the live model's; and back again it is what is stored."""
    checkpoint = open_checkpoint(folder).checkpoint
    live = model.state_dict()
    for name in checkpoint:
        assert torch.equal(bits(checkpoint[name]), bits(live[name])), name
    for group in checkpoint.groups:
        for key, tensor in group.to_stored({name: live[name] for name in group.names}).items():
            entry = checkpoint.stored[key]
            assert tensor.shape == entry.shape, key
            assert torch.equal(bits(tensor), bits(entry.read())), key


def check_writing(model: PreTrainedModel, folder: Path, original: Path) -> None:
    """Scrambled on disk and aligned to the original, a checkpoint is the original again."""
    name, symmetries = folder / "back", scramble(model)[1]
    model.save_pretrained(folder / "scrambled", max_shard_size="100KB")
    alignment = align(original, folder / "scrambled")
    assert alignment.symmetries == {layer: g.inverse() for layer, g in symmetries.symmetries.items()}
    apply(alignment, folder / "scrambled", name)
    assert same(stored(open_checkpoint(name).checkpoint), stored(open_checkpoint(original).checkpoint))


@pytest.mark.parametrize("family", families.available())
def test_reading(family, tmp_path):
    """Float32 in shards, bfloat16 under module names in one file."""
    model = families.build(family)
    model.save_pretrained(tmp_path / "sharded", **LAYOUTS["sharded"])
    check_reading(model, tmp_path / "sharded")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "fused", **LAYOUTS["fused"])
    check_reading(model, tmp_path / "fused")
