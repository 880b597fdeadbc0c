"""Quantised weights are read as Transformers, or their published rule, dequantises them, bit for bit."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from hf_moe_lmc import align, apply
from hf_moe_lmc.checkpoints import Checkpoint, meta_model, quantisation, read_config
from hf_moe_lmc.checkpoints.dequantised import dequantised, float8_weight
from hf_moe_lmc.checkpoints.stored_tensor import DTYPES, StoredTensor
from hf_moe_lmc.errors import BadInputError
from tests.checkpoints.faulty import SINGLE, edit_config, edit_tensors
from tests.checkpoints.quantising import FORMATS, built, dequantised_by_transformers, quantised

RENAMED = "fp8 blocks, keys renamed"
EXPERT = "model.layers.1.block_sparse_moe.experts.2.w1"


def opened(folder) -> Checkpoint:
    return Checkpoint.open(folder, meta_model(read_config(folder)))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(name, tmp_path):
    original = built(name)
    folder = quantised(name, original, tmp_path / "quantised")
    checkpoint, expected = opened(folder), dequantised_by_transformers(name, folder, tmp_path / "plain").state_dict()
    assert quantisation(checkpoint.model.config) is None
    assert checkpoint.is_quantised
    read = dict(checkpoint)
    assert read.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key].to(tensor.dtype)) for key, tensor in read.items())
    assert any(not torch.equal(tensor, original.state_dict()[key]) for key, tensor in read.items())


def test_blocks_that_the_edge_cuts():
    """The loop of DeepSeek's own code; 576 rows, as of its kv_a_proj_with_mqa, are four blocks and a half."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(200, 300, generator=generator).mul(100).to(torch.float8_e4m3fn)
    scales = torch.rand(2, 3, generator=generator)
    expected = torch.empty(200, 300, dtype=torch.bfloat16)
    for i in range(2):
        for j in range(3):
            place = slice(128 * i, 128 * (i + 1)), slice(128 * j, 128 * (j + 1))
            expected[place] = codes[place].float() * scales[i, j]
    assert torch.equal(float8_weight(codes, scales, (128, 128)), expected)
    assert not torch.equal(float8_weight(codes, scales, (100, 100)), expected)  # as if blocks were even


def test_scales_that_are_exponents():
    """Bytes, as of MXFP8, by Transformers' own rule."""
    codes = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).mul(100).to(torch.float8_e4m3fn)
    exponents = torch.arange(120, 132, dtype=torch.uint8).reshape(4, 3)
    expected = Fp8Dequantize(None)._dequantize_one(codes, exponents)
    assert torch.equal(float8_weight(codes, exponents, (16, 32)), expected)
    assert not torch.equal(float8_weight(codes, exponents.float(), (16, 32)), expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Read it only."""
    return quantised(RENAMED, built(RENAMED), tmp_path_factory.mktemp("quantised") / "fp8")


PACKED = {  # method -> a part of an expert that shows it, and its dtype
    "gptq": ("qweight", torch.int32),
    "awq": ("qweight", torch.int32),
    "bitsandbytes": ("weight", torch.uint8),
    "compressed-tensors": ("weight_packed", torch.int32),
    "unheard_of": ("weight", torch.float8_e4m3fn),
}


@pytest.mark.parametrize("method", PACKED)
def test_other_formats_are_refused_with_a_way_out(method, tmp_path):
    original, (part, dtype) = tmp_path / "original", PACKED[method]
    built(RENAMED).save_pretrained(original)
    packed = shutil.copytree(original, tmp_path / "packed")
    edit_config(quantization_config={"quant_method": method})(packed)
    weights = load_file(packed / SINGLE)
    expert = re.compile(r"(.*\.experts\.\d+\.w\d\.)weight")
    parts = {found[1] + part: tensor.to(dtype) for key, tensor in weights.items() if (found := expert.fullmatch(key))}
    save_file({key: tensor for key, tensor in weights.items() if not expert.fullmatch(key)} | parts, packed / SINGLE)
    message = rf"{part} holds {dtype}, .* not read here \({method}\); give the 16-bit checkpoint that was quantised"
    with pytest.raises(BadInputError, match=message):
        align(original, packed)
    assert align(original, original).symmetries


@pytest.mark.parametrize("part", ["scale", "qscale_weight"])
def test_other_names_of_scales(folder, part, tmp_path):
    """Transformers knows them, too."""
    renamed = shutil.copytree(folder, tmp_path / "renamed")
    tensors = {key.replace("weight_scale_inv", part): tensor for key, tensor in load_file(folder / SINGLE).items()}
    save_file(tensors | {f"{EXPERT}.qscale_act": torch.ones(1)}, renamed / SINGLE, {"format": "pt"})
    expected, read = dequantised_by_transformers(RENAMED, renamed, tmp_path).state_dict(), dict(opened(renamed))
    assert read.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in read.items())


def test_scales_that_do_not_fit(folder, tmp_path):
    damaged, key = shutil.copytree(folder, tmp_path / "damaged"), f"{EXPERT}.weight_scale_inv"
    edit_tensors(key, lambda tensors: tensors.update({key: tensors[key][:1].contiguous()}))(damaged)
    with pytest.raises(BadInputError, match=rf"{key} has shape .*, which does not fit .*w1\.weight of shape"):
        opened(damaged)
    edit_config(quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16]})(damaged)
    with pytest.raises(BadInputError, match="does not fit"):
        opened(damaged)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"w": ("F8_E4M3", (8,)), "w_scale": ("F32", (1,))}, "w_scale has shape"),
        ({"w": ("F8_E4M3", (8, 8)), "w_scale": ("I64", (1,))}, "w_scale has shape"),
        ({"w_blocks": ("F32", (2, 4, 1, 16)), "w_scales": ("U8", (2, 4, 1))}, "w_scales has shape"),
        ({"w_blocks": ("U8", (2, 4, 1, 16))}, "w_blocks holds torch.uint8, and its scales are not there"),
    ],
)
def test_parts_that_make_no_weight(parts, message):
    file = Path("model.safetensors")
    stored = {key: StoredTensor(key, file, DTYPES[dtype], shape, 0) for key, (dtype, shape) in parts.items()}
    with pytest.raises(BadInputError, match=f"model.safetensors: {message}"):
        dequantised(stored, {"quant_method": "mxfp4"}, Path("config.json"))


@pytest.mark.parametrize(
    "settings",
    [
        *({"weight_block_size": size} for size in ("x", [128], [0, 0], [None, 128], 128)),
        *({"config_groups": groups} for groups in ([1], {"group_0": None}, {"group_0": {"weights": "float"}})),
    ],
)
def test_blocks_of_no_size(settings, tmp_path):
    with pytest.raises(BadInputError, match=r"config\.json: quantization_config does not say how large blocks are"):
        dequantised({}, {"quant_method": "fp8"} | settings, tmp_path / "config.json")
    assert dequantised({}, {"quant_method": "fp8", "weight_block_size": "128x128"}, tmp_path / "config.json") == {}


def test_a_code_that_is_nan(folder, tmp_path):
    damaged, key = shutil.copytree(folder, tmp_path / "damaged"), f"{EXPERT}.weight"

    def damage(tensors):
        tensors[key].view(torch.uint8)[0, 0] = 127

    edit_tensors(key, damage)(damaged)
    with pytest.raises(BadInputError, match=rf"{SINGLE}: {key} holds NaN"):
        align(folder, damaged)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lm_head.weight", "lm_head.weight is missing"),
        ("self_attn.q_proj", "self_attn.q_proj.* is missing"),
        (f"{EXPERT}.weight_scale_inv", f"{EXPERT}.weight holds .*, and its scales are not there"),
    ],
)
def test_a_tensor_that_is_missing(folder, key, message, tmp_path):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    tensors = load_file(folder / SINGLE)
    save_file({own: tensor for own, tensor in tensors.items() if key not in own}, damaged / SINGLE)
    with pytest.raises(BadInputError, match=message):
        opened(damaged)


def test_a_left_over_setting(single, saved, tmp_path):
    edit_config(quantization_config={"quant_method": "fp8"})(single)
    checkpoint = opened(single)
    assert not checkpoint.is_quantised
    assert all(torch.equal(tensor, opened(saved / "single")[name]) for name, tensor in checkpoint.items())
    apply(align(saved / "single", single), single, tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out")
