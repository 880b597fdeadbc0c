import pytest
import torch

from hf_moe_lmc import Alignment, align, merge, scramble
from hf_moe_lmc.adapters import alignable_layers, moe_layers
from hf_moe_lmc.alignment import apply_symmetries
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError, UnsupportedArchitectureError
from hf_moe_lmc.symmetry import MoeSymmetry
from tests.layers import derangement
from tests.models import MODELS, build, logits, moe_gpt2, moe_vit


def planted(model, seed: int = 0) -> dict[str, MoeSymmetry]:
    """A derangement of every layer of `model`."""
    tensors = model.state_dict()
    return {spec.name: derangement(spec.read(tensors), seed) for spec in alignable_layers(model)}


def scrambled(model, symmetries):
    copy = build_like(model)
    copy.load_state_dict(apply_symmetries(model.state_dict(), alignable_layers(model), symmetries))
    return copy


def build_like(model):
    copy = type(model)(model.config).eval()
    copy.set_experts_implementation("eager")
    return copy.to(model.dtype)


def relative_difference(a, b) -> float:
    expected = logits(a)
    return float((logits(b) - expected).abs().max() / expected.abs().max())


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def test_function_is_preserved(name):
    """Routers of Mixtral and Qwen2-MoE compute their softmax in float32, hence the tolerance."""
    model = build(name)
    assert relative_difference(model, scrambled(model, planted(model))) < (1e-12 if name.startswith("moe_") else 2e-5)


def test_control_experts_without_router(name):
    model = build(name)
    moved = scrambled(model, planted(model))
    state = moved.state_dict()
    for spec in moe_layers(model):
        state |= spec.router.write(spec.router.read(model.state_dict()))
    moved.load_state_dict(state)
    assert relative_difference(model, moved) > 1e-2


@pytest.mark.parametrize("expert_order", ["gate", "gram", "joint"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_planted_symmetries_are_recovered_bit_for_bit(name, expert_order, dtype):
    model = build(name, dtype=dtype)
    symmetries = planted(model)
    other = scrambled(model, symmetries)
    alignment = align(model, other, expert_order)
    assert alignment.symmetries == {layer: g.inverse() for layer, g in symmetries.items()}
    assert alignment.apply(other) is other
    original = model.state_dict()
    assert all(torch.equal(tensor, original[key]) for key, tensor in other.state_dict().items())


def test_a_model_aligned_with_itself_is_left_alone(name):
    model = build(name)
    assert all(layer.symmetry.is_identity for layer in align(model, model).layers.values())


def test_apply_brings_the_other_closer_and_keeps_its_function(name):
    reference, other = build(name, seed=0), build(name, seed=1)
    before = logits(other)
    alignment = align(reference, other, "joint")
    alignment.apply(other)
    assert float((logits(other) - before).abs().max() / before.abs().max()) < 2e-5
    again = align(reference, other, "joint")
    for layer, found in alignment.layers.items():
        assert found.distance_after < found.distance_before
        assert again.layers[layer].distance_before == pytest.approx(found.distance_after)
        assert again.layers[layer].symmetry.is_identity


def test_save_and_load(name, tmp_path):
    alignment = align(build(name, seed=0), build(name, seed=1))
    alignment.save_pretrained(tmp_path / "alignment")
    assert Alignment.from_pretrained(tmp_path / "alignment") == alignment


def test_scramble(name):
    """Moves all weights, keeps the function, says what it did, and depends on the seed only."""
    model, again, other = build(name), build(name), build(name)
    before = logits(model)
    scrambled, alignment = scramble(model, seed=3)
    assert scrambled is model
    assert float((logits(model) - before).abs().max() / before.abs().max()) < 2e-5
    assert scramble(again, seed=3)[1] == alignment != scramble(other, seed=4)[1]
    back = align(build(name), model, "joint")
    for layer, found in back.layers.items():
        planted_layer = alignment.layers[layer]
        assert found.symmetry == planted_layer.symmetry.inverse()
        assert found.distance_before == pytest.approx(planted_layer.distance_after)
        assert found.distance_before > 1.0


def test_models_of_different_classes():
    with pytest.raises(IncompatiblePairError, match=r"reference is a MoeViT.*the other a MoeGPT2"):
        align(moe_vit(), moe_gpt2())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 6}, "num_experts is 5 in the reference, 6 in the other"),
        ({"moe_intermediate_size": 8}, "moe_intermediate_size is 7 in the reference, 8 in the other; tensor vit"),
        ({"moe_layers": [0]}, r"moe_layers is \[0, 2\] in the reference, \[0\] in the other"),
        ({"moe_variant": "shared"}, r"moe_variant is 'sparse' in the reference, 'shared' in the other"),
    ],
)
def test_models_of_different_sizes(fields, message):
    with pytest.raises(IncompatiblePairError, match=message):
        align(moe_vit(), moe_vit(**fields))


def test_weights_that_are_not_numbers_are_named():
    broken = moe_vit()
    with torch.no_grad():
        broken.vit.layers[2].mlp.experts.down_proj[3, 1, 2] = float("nan")
    with pytest.raises(BadInputError, match=r"vit\.layers\.2\.mlp\.experts\.down_proj holds NaN"):
        align(moe_vit(), broken)


def test_a_module_without_experts():
    with pytest.raises(UnsupportedArchitectureError, match="Linear has no"):
        align(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))


def test_an_alignment_made_for_another_model_is_refused():
    alignment = align(moe_vit(), moe_vit())
    with pytest.raises(IncompatiblePairError, match="does not exist in the model"):
        alignment.apply(moe_gpt2())
    smaller = moe_vit(num_experts=4)
    before = {key: tensor.clone() for key, tensor in smaller.state_dict().items()}
    with pytest.raises(IncompatiblePairError, match=r"layer vit\.layers\.0\.mlp: a symmetry of sizes \(5, 7, None\)"):
        alignment.apply(smaller)
    assert all(torch.equal(tensor, before[key]) for key, tensor in smaller.state_dict().items())


@pytest.mark.parametrize("damage", ["missing", "not json", "not safetensors", "not a permutation", "wrong keys"])
def test_damaged_files_are_refused(tmp_path, damage):
    align(moe_vit(), moe_vit()).save_pretrained(tmp_path)
    config, weights = tmp_path / "alignment_config.json", tmp_path / "alignment.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "not json":
        config.write_text("{")
    elif damage == "not safetensors":
        weights.write_bytes(b"<html>")
    elif damage == "not a permutation":
        from safetensors.torch import load_file, save_file

        save_file({key: torch.zeros_like(tensor) for key, tensor in load_file(weights).items()}, weights)
    else:
        config.write_text('{"layers": {"a": {}}}')
    with pytest.raises(BadInputError, match="does not hold an alignment"):
        Alignment.from_pretrained(tmp_path)


def test_merge_ends_are_the_models(name):
    reference, other = build(name, seed=0), build(name, seed=1)
    alignment = align(reference, other)
    start, end = merge(reference, other, alignment, t=0.0), merge(reference, other, alignment, t=1.0)
    aligned = apply_symmetries(other.state_dict(), alignable_layers(other), alignment.symmetries)
    assert all(torch.equal(tensor, reference.state_dict()[key]) for key, tensor in start.state_dict().items())
    assert all(torch.equal(tensor, aligned[key]) for key, tensor in end.state_dict().items())
    assert start is not reference


def test_merge_of_a_scrambled_copy_is_the_model(name):
    """Without an alignment given, merge aligns on the way."""
    model = build(name)
    merged = merge(model, scrambled(model, planted(model)))
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in merged.state_dict().items())


def test_merge_off_the_line():
    with pytest.raises(BadInputError, match=r"t is 1\.5"):
        merge(moe_vit(), moe_vit(), t=1.5)


def test_apply_accepts_only_permutations_of_its_layers():
    model = build("mixtral")
    wrong = {name: MoeSymmetry.identity(5, 8) for name in planted(model)}
    with pytest.raises(IncompatiblePairError, match="cannot act"):
        apply_symmetries(model.state_dict(), alignable_layers(model), wrong)
