"""Aligning one model to another: planted answers, refusals, and folders that appear complete or not at all."""

from pathlib import Path
from unittest import mock

import pytest
import torch

from hf_moe_lmc import Alignment, align, scramble
from hf_moe_lmc.alignment import AlignmentConfig, Resources, align_into, align_pair, open_models, pairwise
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError, UnsupportedArchitectureError
from hf_moe_lmc.matching import align_layers
from tests import families
from tests.alignment.planted import planted, same, scrambled
from tests.models import MODELS, build, logits, moe_gpt2, moe_vit


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.mark.parametrize("expert_order", ["gate", "gram", "joint"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_planted_symmetries_are_recovered_bit_for_bit(name, expert_order, dtype):
    model = build(name, dtype=dtype)
    symmetries = planted(model)
    other = scrambled(model, symmetries)
    alignment = align(model, other, config=expert_order)
    assert alignment.symmetries == {layer: g.inverse() for layer, g in symmetries.items()}
    assert alignment.apply(other) is other
    assert same(other.state_dict(), model.state_dict())


def test_a_model_aligned_with_itself_is_left_alone(name):
    model = build(name)
    assert all(layer.symmetry.is_identity for layer in align(model, model).layers.values())


def test_it_brings_the_other_closer_and_keeps_its_function(name):
    reference, other = build(name, seed=0), build(name, seed=1)
    before = logits(other)
    alignment = align(reference, other, config="joint")
    alignment.apply(other)
    assert float((logits(other) - before).abs().max() / before.abs().max()) < 2e-5
    again = align(reference, other, config="joint")
    for layer, found in alignment.layers.items():
        assert found.distance_after < found.distance_before
        assert again.layers[layer].distance_before == pytest.approx(found.distance_after)
        assert again.layers[layer].symmetry.is_identity


def test_folders_and_live_models_are_aligned_alike(tmp_path):
    """And one with the other; the record of the weights does not depend on where they are."""
    models = [build("mixtral", seed=seed, dtype=torch.float32) for seed in (0, 1)]
    for side, model in zip("ab", models, strict=True):
        model.save_pretrained(tmp_path / side)
    live = align(*models)
    for pair in ((tmp_path / "a", tmp_path / "b"), (models[0], tmp_path / "b"), (tmp_path / "a", models[1])):
        found = align(*pair)
        assert found.layers == live.layers
        assert found.other.digests == live.other.digests
        assert found.reference.digests == live.reference.digests


def test_weights_that_are_not_numbers_are_named():
    broken = moe_vit()
    with torch.no_grad():
        broken.vit.layers[2].mlp.experts.down_proj[3, 1, 2] = float("nan")
    with pytest.raises(BadInputError, match=r"vit\.layers\.2\.mlp\.experts\.down_proj holds NaN"):
        align(moe_vit(), broken)


def test_weights_beyond_float32_are_named():
    broken = moe_vit().double()
    with torch.no_grad():
        broken.vit.layers[2].mlp.experts.down_proj[3, 1, 2] = 1e16
    with pytest.raises(BadInputError, match=r"vit\.layers\.2\.mlp\.experts\.down_proj holds 1e\+16"):
        align(moe_vit().double(), broken)


def test_a_module_without_experts():
    with pytest.raises(UnsupportedArchitectureError, match="Linear has no"):
        align(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))


def test_an_alignment_made_for_another_model_is_refused():
    alignment = align(moe_vit(), moe_vit())
    with pytest.raises(IncompatiblePairError, match="does not exist in the model"):
        alignment.apply(moe_gpt2())
    smaller = moe_vit(num_experts=4)
    before = {key: tensor.clone() for key, tensor in smaller.state_dict().items()}
    with pytest.raises(IncompatiblePairError, match=r"layer vit\.layers\.0\.mlp: a symmetry of sizes \(5, 7, None"):
        alignment.apply(smaller)
    assert same(smaller.state_dict(), before)


def test_units_alone():
    model, other = build("mixtral"), scramble(build("mixtral", seed=1))[0]
    for layer in align(model, other, config="units").layers.values():
        assert layer.symmetry.experts.is_identity
        assert not layer.symmetry.is_identity
        assert layer.distance_after < layer.distance_before


def test_nothing_is_no_alignment(tmp_path):
    model = build("mixtral", dtype=torch.float32)
    for arguments in ({}, {"output": tmp_path / "out"}):
        with pytest.raises(BadInputError, match='the expert order "none" aligns nothing; choose another'):
            align(model, model, config="none", **arguments)
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def folder(tmp_path):
    """Checkpoints a and b of three layers."""
    for seed, name in enumerate(("a", "b")):
        families.build("mixtral", seed=seed).save_pretrained(tmp_path / name)
    return tmp_path


def run(folder: Path, config: AlignmentConfig | None = None, stop_after: int = 3) -> int:
    """Align into `folder`/out, interrupted after some layers; the number of layers that were matched."""
    matched = 0

    def interrupted(*arguments):
        nonlocal matched
        if matched == stop_after:
            raise KeyboardInterrupt
        matched += 1
        return align_layers(*arguments)

    with mock.patch("hf_moe_lmc.alignment.pairwise.align_layers", interrupted):
        try:
            pair = open_models([folder / "a", folder / "b"])
            align_into(folder / "out", pair, config or AlignmentConfig(), Resources())
        except KeyboardInterrupt:
            assert not (folder / "out").exists()
    return matched


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_it_goes_on_after_the_last_layer(folder):
    assert run(folder) == 3
    undisturbed = content(folder / "out")
    pair = open_models([folder / "a", folder / "b"])
    assert Alignment.from_pretrained(folder / "out") == align_pair(pair, AlignmentConfig())
    (folder / "out").rename(folder / "undisturbed")
    assert run(folder, stop_after=2) == 2
    assert run(folder) == 1
    assert content(folder / "out") == undisturbed
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "out", "undisturbed"]


def test_another_way_to_match_starts_clean(folder):
    assert run(folder, stop_after=2) == 2
    assert run(folder, AlignmentConfig("gram")) == 3


def test_other_weights_start_clean(folder):
    assert run(folder, stop_after=2) == 2
    families.build("mixtral", seed=2).save_pretrained(folder / "b")
    assert run(folder) == 3
    assert Alignment.from_pretrained(folder / "out") == align(folder / "a", folder / "b")


def test_a_costly_order_is_said(caplog, monkeypatch):
    monkeypatch.setattr(pairwise, "MANY_EXPERTS", 2)
    pair = open_models([build("mixtral"), build("mixtral", seed=1)])
    align_pair(pair, AlignmentConfig("gram"))
    assert not caplog.text
    align_pair(pair, AlignmentConfig("joint"))
    assert '"joint" matches the units of up to 25 pairs of experts in a layer, "auto" of at most 20' in caplog.text
