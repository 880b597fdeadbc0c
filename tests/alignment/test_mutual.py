"""Aligning more than two models."""

import pytest
import torch

from hf_moe_lmc import Alignment, MutualAlignment, align, scramble
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError
from tests import families
from tests.alignment.planted import copied, same
from tests.models import build


def siblings(name: str, noise: float, dtype=torch.float32):
    """A model, and two scrambled copies of it with noise."""
    models = [build(name, dtype=dtype) for _ in range(3)]
    for seed, model in enumerate(models[1:]):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
        scramble(model, seed)
    return models


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "moe_vit shared", "moe_gpt2 sparse"])
def test_scrambled_copies_are_aligned_to_the_model_bit_for_bit(name, dtype):
    models = siblings(name, 0, dtype)
    before = [copied(model) for model in models]
    found = align(models[0], models[1:])
    assert isinstance(found, MutualAlignment)
    assert found.distance <= found.reference_distance < 1e-3  # of rounding in the gauge
    assert all(same(model.state_dict(), old) for model, old in zip(models, before, strict=True))
    for part, model in zip(found, models[1:], strict=True):
        assert same(part.apply(model).state_dict(), before[0])


def test_evidence_stays_with_what_stays():
    """Independent models: the order found for the pair is not that found among three."""
    models = [build("mixtral", seed=seed, dtype=torch.float32) for seed in range(3)]
    found = align(models[0], models[1:], config="joint")
    assert found.distance < found.reference_distance
    layers = [layer for part in found for layer in part.layers.values()]
    assert any(layer.evidence is None for layer in layers)
    for layer in layers:
        assert layer.distance_after <= layer.distance_before
    models = siblings("mixtral", 0.02)
    near = align(models[0], models[1:])
    assert all(layer.evidence for part in near for layer in part.layers.values())


def test_folders_as_live_models(tmp_path):
    models = [families.build("deepseek_v3", seed=0) for _ in range(3)]
    for seed, model in enumerate(models[1:]):
        scramble(model, seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 0.1 * (seed + 1))
    folders = [tmp_path / str(k) for k in range(3)]
    for model, folder in zip(models, folders, strict=True):
        model.save_pretrained(folder, max_shard_size=20_000)
    found, live = align(folders[0], folders[1:], config="gate"), align(models[0], models[1:], config="gate")
    assert [part.symmetries for part in found] == [part.symmetries for part in live]
    found[1].save_pretrained(tmp_path / "alignment")
    assert Alignment.from_pretrained(tmp_path / "alignment") == found[1]


def test_models_that_cannot_be_aligned(tmp_path):
    models = siblings("mixtral", 0)
    with pytest.raises(BadInputError, match="1 model given; give two or more"):
        align(models[0], [])
    with pytest.raises(IncompatiblePairError, match="the reference is a MixtralForCausalLM, the other a Qwen2Moe"):
        align(models[0], [*models[1:], build("qwen2_moe", dtype=torch.float32)])
    with pytest.raises(BadInputError, match="one folder holds the alignment of two models"):
        align(models[0], models[1:], output=tmp_path / "alignment")
    assert not [*tmp_path.iterdir()]
