"""More than two models."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_moe_lmc import align_many, merge, merge_many, merge_many_checkpoints, scramble
from hf_moe_lmc.alignment import Alignment, AlignmentConfig, OutputOptions
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError
from tests import families
from tests.models import build


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def siblings(name: str, noise: float, dtype=torch.float32):
    """A model, and two scrambled copies of it with noise."""
    found = [build(name, dtype=dtype) for _ in range(3)]
    for seed, model in enumerate(found[1:]):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
        scramble(model, seed)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "moe_vit shared", "moe_gpt2 sparse"])
def test_scrambled_copies_merge_to_the_model_bit_for_bit(name, dtype):
    models = siblings(name, 0, dtype)
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
    found = align_many(models)
    assert found.distance == found.reference_distance == 0
    assert same(merge_many(models, found, [1.0, 2.0, 4.0]).state_dict(), before[0])
    assert same(merge_many(models).state_dict(), before[0])
    assert all(same(model.state_dict(), old) for model, old in zip(models, before, strict=True))
    for part, model in zip(found.alignments, models[1:], strict=True):
        assert same(part.apply(model).state_dict(), before[0])


def test_the_mean_is_weighted():
    models = siblings("mixtral", 0.02)
    found = align_many(models)
    second, third = (
        part.apply(model) for part, model in zip(found.alignments, siblings("mixtral", 0.02)[1:], strict=True)
    )
    merged = merge_many(models, found, [1.0, 1.0, 2.0]).state_dict()
    for name, tensor in models[0].state_dict().items():
        expected = (tensor + second.state_dict()[name] + 2 * third.state_dict()[name]) / 4
        torch.testing.assert_close(merged[name], expected)
    pair = merge(models[0], models[1], found.alignments[0], t=0.25).state_dict()
    two = merge_many(models[:2], align_many(models[:2]), [3.0, 1.0]).state_dict()
    for name, tensor in pair.items():
        torch.testing.assert_close(two[name], tensor)


def test_evidence_stays_with_what_stays():
    """Independent models: the order found for the pair is not that found among three."""
    models = [build("mixtral", seed=seed, dtype=torch.float32) for seed in range(3)]
    found = align_many(models, "joint")
    assert found.distance < found.reference_distance
    layers = [layer for part in found.alignments for layer in part.layers.values()]
    assert any(layer.evidence is None for layer in layers)
    for layer in layers:
        assert layer.distance_after <= layer.distance_before
    near = align_many(siblings("mixtral", 0.02))
    assert all(layer.evidence for part in near.alignments for layer in part.layers.values())


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
    weights = [1.0, 2.0, 5.0]
    found = merge_many_checkpoints(folders, tmp_path / "out", AlignmentConfig("gate"), weights)
    live = align_many(models, "gate")
    assert [part.symmetries for part in found.alignments] == [part.symmetries for part in live.alignments]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert same(merged, merge_many(models, live, weights).state_dict())
    found.alignments[1].save_pretrained(tmp_path / "alignment")
    assert Alignment.from_pretrained(tmp_path / "alignment") == found.alignments[1]
    wide = OutputOptions(dtype=torch.float64)
    merge_many_checkpoints(folders, tmp_path / "wide", found, weights, wide)
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "wide").state_dict()
    assert {tensor.dtype for tensor in wide.values() if tensor.is_floating_point()} >= {torch.float64}
    # Made for these weights in this order.
    with pytest.raises(IncompatiblePairError, match="is not that of"):
        merge_many_checkpoints([folders[0], folders[2], folders[1]], tmp_path / "wrong", found)


def test_what_cannot_be_merged():
    models = siblings("mixtral", 0)
    with pytest.raises(BadInputError, match="1 model given; give two or more"):
        align_many(models[:1])
    with pytest.raises(BadInputError, match="1 model given; give two or more"):
        merge_many(models[:1])
    for weights in ([1.0, 1.0], [1.0, 1.0, -1.0], [0.0, 0.0, 0.0], [1.0, 1.0, float("nan")]):
        with pytest.raises(BadInputError, match="give one per model, none negative, not all 0"):
            merge_many(models, None, weights)
    with pytest.raises(BadInputError, match="the alignment is of 2 models, and 3 are given"):
        merge_many(models, align_many(models[:2]))
    with pytest.raises(IncompatiblePairError):
        merge_many([*models, build("qwen2_moe", dtype=torch.float32)])
