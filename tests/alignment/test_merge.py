"""Merges of checked models: endpoints, planted copies, refusals, and how often weights are read."""

from collections import Counter
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from hf_moe_lmc import Pretrained, align, merge, scramble
from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.alignment import (
    AlignmentConfig,
    Merge,
    MergeRepairs,
    WriteOptions,
    align_models,
    normalised_shares,
    open_models,
    shares_at,
)
from hf_moe_lmc.checkpoints.stored_tensor import StoredTensor
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError
from tests import families
from tests.alignment.planted import copied, naive_aligned, planted, same, scrambled
from tests.alignment.test_mutual import siblings
from tests.matching.known_pairs import changed, noisy, with_scales
from tests.models import MODELS, build

NORMS = MergeRepairs.without_data(["norms"])


@pytest.mark.parametrize("name", MODELS)
def test_the_ends_are_the_models(name):
    reference, other = build(name, seed=0), build(name, seed=1)
    alignment = align(reference, other)
    start, end = merge(reference, other, alignment=alignment, t=[0.0, 1.0])
    specs = open_models([reference, other]).reference.layers
    assert same(start.state_dict(), reference.state_dict())
    assert same(end.state_dict(), naive_aligned(other.state_dict(), specs, alignment.symmetries))
    assert start is not reference


@pytest.mark.parametrize("name", MODELS)
def test_a_scrambled_copy_merges_to_the_model(name):
    """Without an alignment given, merge aligns on the way; without any, it does not."""
    model = build(name)
    other = scrambled(model, planted(model))
    assert same(merge(model, other).state_dict(), model.state_dict())
    assert not same(merge(model, other, alignment="none").state_dict(), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "moe_vit shared", "moe_gpt2 sparse"])
def test_scrambled_copies_merge_to_the_model(name, dtype):
    models = siblings(name, 0, dtype)
    before = [copied(model) for model in models]
    assert same(
        merge(models[0], models[1:], alignment=align(models[0], models[1:]), shares=[1.0, 2.0, 4.0]).state_dict(),
        before[0],
    )
    assert same(merge(models[0], models[1:]).state_dict(), before[0])
    assert all(same(model.state_dict(), old) for model, old in zip(models, before, strict=True))


def test_models_are_left_alone():
    models = [build("mixtral", seed=seed, dtype=torch.float32) for seed in (0, 1)]
    before = [copied(model) for model in models]
    for t in (0.0, 0.5, 1.0):
        merged = merge(models[0], models[1:], t=t, repairs=["norms"], force=True)
        with torch.no_grad():
            for parameter in merged.parameters():
                parameter.fill_(9.0)
    assert all(same(model.state_dict(), old) for model, old in zip(models, before, strict=True))


def test_some_models_may_stay_unaligned():
    """None leaves a model as it is."""
    model, scrambled_copy, third = siblings("mixtral", 0)
    (first, _) = align(model, [scrambled_copy, third])
    alone = merge(model, [scrambled_copy, third], alignment=[first, None], shares=[1.0, 1.0, 0.0])
    assert same(alone.state_dict(), model.state_dict())
    naive = merge(model, [scrambled_copy, third], alignment=[None, None])
    assert same(naive.state_dict(), merge(model, [scrambled_copy, third], alignment="none").state_dict())


@pytest.mark.parametrize("t", [-0.1, 1.5, float("nan")])
def test_off_the_line(t):
    with pytest.raises(BadInputError, match=rf"t is {t}; choose a value from 0 \(reference\) to 1 \(other\)"):
        shares_at(t)
    with nullcontext() if t == t else pytest.raises(BadInputError):
        assert shares_at(t, extrapolate=True) == (1 - t, t)


@pytest.mark.parametrize(
    "shares", [[1.0, 1.0], [1.0] * 4, [1.0, 1.0, -1.0], [0.0] * 3, [1.0, 1.0, float("nan")], [1.0, 1.0, float("inf")]]
)
def test_shares_that_are_none(shares):
    with pytest.raises(BadInputError, match="3 models; give one per model, not all 0, none negative unless"):
        normalised_shares(shares, 3)


def test_shares_have_any_unit():
    assert normalised_shares(None, 4) == (0.25,) * 4
    assert normalised_shares([2.0, 6.0], 2) == shares_at(0.75) == (0.25, 0.75)


def test_alignments_that_do_not_fit():
    models = siblings("mixtral", 0)
    pair = align(*models[:2])
    with pytest.raises(BadInputError, match="1 alignments for 2 other models; give one for each"):
        merge(models[0], models[1:], alignment=pair)
    with pytest.raises(BadInputError, match="2 alignments for 1 other models; give one for each"):
        merge(*models[:2], alignment=align(models[0], models[1:]))
    other = align(*(build("moe_vit sparse", seed=seed, dtype=torch.float32) for seed in (0, 1)))
    with pytest.raises(
        IncompatiblePairError, match=r"layer vit\.layers\.0\.mlp of the alignment does not exist in Mix"
    ):
        merge(*models[:2], alignment=other)


@pytest.mark.parametrize("role", ["reference", "other"])
def test_other_weights_need_permission(role):
    """Of the reference as of the other; live as on disk (see test_saved_alignment.py)."""
    models = [build("mixtral", seed=seed, dtype=torch.float32) for seed in (0, 1)]
    alignment = align(models[0], models[1:])
    changed = models[role == "other"]
    with torch.no_grad():
        changed.model.layers[1].mlp.experts.down_proj[0, 0, 0] += 1
    with pytest.raises(
        IncompatiblePairError, match=r"layer model\.layers\.1\.mlp of MixtralForCausalLM is not that of"
    ):
        merge(models[0], models[1:], alignment=alignment, force=True)
    assert merge(models[0], models[1:], alignment=alignment, force=True, allow_other_weights=True)


def test_alignments_are_made_for_models_in_their_order(tmp_path):
    models = siblings("mixtral", 0.02)
    for i, model in enumerate(models):
        model.save_pretrained(tmp_path / str(i))
    a, b, c = (tmp_path / name for name in "012")
    found = align(a, [b, c])
    with pytest.raises(IncompatiblePairError, match="is not that of"):
        merge(a, [c, b], alignment=found, output=tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


@pytest.fixture
def reads(monkeypatch) -> list[tuple[str, str]]:
    """Folder and key of all tensors whose values are read from now on, but for a first one that type checks look at."""
    keys, read_into = [], StoredTensor.read_into
    monkeypatch.setattr(
        StoredTensor,
        "read_into",
        lambda self, tensor: (
            keys.append((self.file.parent.name, self.key)) if self.key != "lm_head.weight" else None,
            read_into(self, tensor),
        )[1],
    )
    return keys


@pytest.mark.parametrize("repairs", [MergeRepairs(), NORMS], ids=["plain", "norms"])
@pytest.mark.parametrize("points", [(0.5,), (0.25, 0.5, 1.0)], ids=str)
def test_every_tensor_is_read_once_for_all_points(points, repairs, reads, tmp_path):
    """Checked, aligned, averaged, repaired and written at several points: one pass over each checkpoint."""
    for seed, name in enumerate("ab"):
        families.build("deepseek_v3", seed=seed).save_pretrained(tmp_path / name, max_shard_size="20KB")
    models = open_models([tmp_path / "a", tmp_path / "b"])
    alignment = align_models(models, AlignmentConfig("gate"))
    keys = {(name, key) for name, m in zip("ab", models.models, strict=True) for key in m.checkpoint.stored}
    keys = {entry for entry in keys if entry[1] != "lm_head.weight"}
    reads.clear()
    outputs = {f"t-{t}": shares_at(t) for t in points}
    Merge(models, [alignment]).write(tmp_path / "out", outputs, repairs, WriteOptions())
    assert Counter(entry for entry in reads if entry[0] in "ab") == Counter(keys)


def test_a_model_without_a_share_is_not_read(reads, tmp_path):
    for seed, name in enumerate("ab"):
        build("mixtral", seed=seed, dtype=torch.float32).save_pretrained(tmp_path / name)
    models = open_models([tmp_path / "a", tmp_path / "b"])
    Merge(models, [None]).write(tmp_path / "out", {"": shares_at(1.0)}, MergeRepairs(), WriteOptions())
    assert {folder for folder, _ in reads if folder in "ab"} == {"b"}


def test_each_model_may_have_keywords_of_its_own(tmp_path):
    model = build("mixtral", dtype=torch.float32)
    model.save_pretrained(tmp_path / "repository" / "inner")
    scramble(model)[0].save_pretrained(tmp_path / "b")
    merged = merge(Pretrained(tmp_path / "repository", subfolder="inner"), tmp_path / "b")
    assert same(merged.state_dict(), build("mixtral", dtype=torch.float32).state_dict())


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "deepseek_v3", "switch_transformers", "nemotron_h"])
def test_planted_scales_and_signs_change_neither_alignment_nor_verdict_nor_merge(family):
    """Routed and shared experts, a degree of 1 and of 2."""
    reference = families.build(family, experts=4)
    (*_, spec) = alignable_layers(reference)
    other, moved = deepcopy(reference), deepcopy(reference)
    own = changed(spec.read(reference.state_dict()), noisy(0.7), seed=1)
    other.load_state_dict(other.state_dict() | spec.write(own, other.state_dict()))
    group, shared = own.group, own.shared_experts
    if shared is not None:
        shared = with_scales(shared, group.shared_unit_scale_degree, 3.0, seed=3)
    scaled = replace(own, experts=with_scales(own.experts, group.unit_scale_degree, 3.0, seed=2), shared_experts=shared)
    moved.load_state_dict(moved.state_dict() | spec.write(scaled, moved.state_dict()))
    moved = scrambled(moved, {spec.name: planted(moved)[spec.name]})
    found, expected = align(reference, moved), align(reference, other)
    for layer, plain in zip(found.verdict().to_json()["layers"], expected.verdict().to_json()["layers"], strict=True):
        assert layer["label"] == ("aligned" if layer["name"] == spec.name else "in_place")
        assert [e["z"] for e in layer["experts"]] == pytest.approx([e["z"] for e in plain["experts"]], rel=1e-3)
    wanted = merge(reference, other).state_dict()
    for name, tensor in merge(reference, moved).state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-4, atol=1e-5)
    # Control: averaged as it is, the merge is another one.
    plain = merge(reference, found.apply(moved), alignment="none").state_dict()
    assert max((plain[name] - wanted[name]).abs().max() for name in spec.tensor_names) > 0.1
