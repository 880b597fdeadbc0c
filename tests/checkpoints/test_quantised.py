"""Weights written in block-wise fp8: read by Transformers as they are here, and the same bits when written again."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from hf_moe_lmc import Alignment, align, apply, cli, merge
from hf_moe_lmc.alignment import open_model
from hf_moe_lmc.checkpoints.dequantised import float8_weight
from hf_moe_lmc.checkpoints.quantised import quantised
from hf_moe_lmc.errors import BadInputError, UnsupportedArchitectureError
from hf_moe_lmc.symmetry import Permutation
from tests import families
from tests.checkpoints.faulty import SINGLE, edit_tensors


def test_quantising_what_was_read_changes_no_bit():
    """Blocks of all magnitudes, one of zeros; a scale that is no maximum does not come back."""
    weight = torch.randn(256, 384, generator=torch.Generator().manual_seed(0))
    weight *= torch.logspace(-6, 3, 6).reshape(2, 3).repeat_interleave(128, 0).repeat_interleave(128, 1)
    weight[:128, :128] = 0
    once = quantised({"w": weight, "norm": weight[0]}, {"w"})
    assert once.keys() == {"w", "w_scale_inv", "norm"}
    assert torch.equal(once["norm"], weight[0])
    read = float8_weight(once["w"], once["w_scale_inv"], (128, 128))
    again = quantised({"w": read}, {"w"})
    assert all(torch.equal(tensor.view(torch.uint8), once[key].view(torch.uint8)) for key, tensor in again.items())
    assert (read.float() - weight).abs().max() <= weight.abs().max() / 16
    other = quantised({"w": float8_weight(once["w"], once["w_scale_inv"] * 1.001, (128, 128))}, {"w"})
    assert not torch.equal(other["w_scale_inv"], once["w_scale_inv"] * 1.001)


def large(family: str, seed: int):
    """A model whose experts have sides of 128, in bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        for size in ("hidden_size", "intermediate_size", "moe_intermediate_size"):
            patch.setitem(families.SIZES, size, 128)
        return families.build(family, experts=4, seed=seed, dtype=torch.bfloat16)


def reordered(folder, order) -> Alignment:
    """An alignment of a checkpoint that reorders its experts and nothing else."""
    alignment = align(folder, folder)
    layers = {
        name: replace(layer, symmetry=replace(layer.symmetry, experts=Permutation(order)))
        if len(layer.symmetry.experts.index) > 1
        else layer
        for name, layer in alignment.layers.items()
    }
    return replace(alignment, layers=layers)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_a_merge_in_fp8(family, tmp_path):
    """Transformers reads it as it is read here; routers, norms and embeddings are those of the plain merge.

    Another order of its experts moves codes and scales as they are.
    """
    a, b = (tmp_path / name for name in "ab")
    further = "model.layers.3.eh_proj"  # of a layer that predicts a further token
    for seed, folder in enumerate((a, b)):
        large(family, seed).save_pretrained(folder)
        if family == "deepseek_v3":
            edit_tensors(further, lambda tensors: tensors.update({f"{further}.weight": torch.ones(128, 256)}))(folder)
    merge(a, b, "none", output=tmp_path / "plain")
    assert (
        cli.main(
            ["merge", *map(str, (a, b)), "--expert-order", "none", "--quantise", "fp8", "-o", str(tmp_path / "fp8")]
        )
        == 0
    )
    stored = load_file(tmp_path / "fp8" / SINGLE)
    codes = {key for key, tensor in stored.items() if tensor.dtype == torch.float8_e4m3fn}
    assert codes == {key.removesuffix("_scale_inv") for key in stored if key.endswith("_scale_inv")}
    assert any(".experts." in key for key in codes)
    assert not any("lm_head" in key or "gate.weight" in key or "norm" in key or "embed" in key for key in codes)
    plain = load_file(tmp_path / "plain" / SINGLE)
    assert all(torch.equal(stored[key], tensor) for key, tensor in plain.items() if key not in codes)
    expected = quantised(plain, codes)
    assert all(torch.equal(tensor.float(), expected[key].float()) for key, tensor in stored.items())
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "fp8", quantization_config=FineGrainedFP8Config(dequantize=True), dtype=torch.bfloat16
    ).state_dict()
    read = open_model(tmp_path / "fp8").tensors
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in read.items() if further not in name)
    order = torch.arange(4).roll(1)
    apply(reordered(tmp_path / "fp8", order), tmp_path / "fp8", tmp_path / "again", quantise="fp8")
    again = load_file(tmp_path / "again" / SINGLE)
    for key, tensor in again.items():
        before = stored[re.sub(r"(?<=\.experts\.)\d+", lambda own: str(int(order[int(own[0])])), key)].float()
        of_router = key.endswith((".gate.weight", "_correction_bias"))
        assert torch.equal(tensor.float(), before[order] if of_router else before), key
    settings = [
        json.loads((tmp_path / name / "config.json").read_text()).get("quantization_config")
        for name in ("fp8", "again", "plain")
    ]
    assert settings[0] == settings[1]
    assert settings[0]["weight_block_size"] == [128, 128]
    assert (further in settings[0]["modules_to_not_convert"]) == (family == "deepseek_v3")
    assert settings[2] is None


def test_what_is_not_finite_is_refused(tmp_path):
    """Codes would hide it."""
    model = large("mixtral", 0)
    model.save_pretrained(tmp_path / "a")
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[2, 3, 4] = torch.nan
    model.save_pretrained(tmp_path / "b")
    with pytest.raises(BadInputError, match=r"b/model.safetensors: .*layers\.1\..*experts\.2\.w2\.weight holds NaN"):
        merge(tmp_path / "a", tmp_path / "b", "none", output=tmp_path / "out", quantise="fp8")


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gpt_oss", "bias"),
        ("switch_transformers", "has none of"),
        ("qwen2_moe", "no weight has sides that 128 divides"),
        ("granitemoe", "input_linear.weight, which holds several experts, it loses the scales"),
    ],
)
def test_what_transformers_does_not_read_in_fp8(family, reason, tmp_path):
    model = families.build(family) if "128" in reason else large(family, 0)
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(UnsupportedArchitectureError, match=f"{reason}.*llm-compressor"):
        merge(tmp_path / "a", tmp_path / "a", "none", output=tmp_path / "out", quantise="fp8")
    assert merge(tmp_path / "a", tmp_path / "a", "none", output=tmp_path / "out")


def test_stacked_experts_are_written_one_by_one(tmp_path):
    """Transformers reads stacked codes without their scales; the refusal names the layout that it reads."""
    model = large("mixtral", 0)
    model.save_pretrained(tmp_path / "single")
    model.save_pretrained(tmp_path / "stacked", save_original_format=False)
    settings = [("single", "fused"), ("stacked", "kept"), ("single", "kept"), ("stacked", "original")]
    for number, (name, layout) in enumerate(settings):
        folder, options = tmp_path / name, {"output": tmp_path / str(number), "quantise": "fp8", "layout": layout}
        if number < 2:
            message = r"experts\.\w+_proj, which holds several experts, it loses the scales .* --layout original"
            with pytest.raises(UnsupportedArchitectureError, match=message):
                merge(folder, folder, "none", **options)
        else:
            merge(folder, folder, "none", **options)
    kept, original = (load_file(tmp_path / str(number) / SINGLE) for number in (2, 3))
    assert kept.keys() == original.keys()
    assert all(torch.equal(tensor.float(), original[key].float()) for key, tensor in kept.items())
    options = {"quantization_config": FineGrainedFP8Config(dequantize=True), "dtype": torch.bfloat16}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "3", **options).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in open_model(tmp_path / "3").tensors.items())
