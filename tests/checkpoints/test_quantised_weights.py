"""Quantised weights are known by what is stored, and the way out of them works."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_moe_lmc import align, apply
from hf_moe_lmc.checkpoints import Checkpoint, meta_model, quantisation, read_config
from hf_moe_lmc.checkpoints.checkpoint import DEQUANTISING
from hf_moe_lmc.errors import BadInputError
from tests.alignment.test_quantised import FORMATS, quantised
from tests.checkpoints.faulty import edit_config


def opened(folder, quantised=False) -> Checkpoint:
    return Checkpoint.open(folder, meta_model(read_config(folder)), quantised)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_quantised_is_refused_with_a_way_out(name, tmp_path):
    folder, method = quantised(name, tmp_path / "quantised"), FORMATS[name].method
    with pytest.raises(BadInputError, match=rf"quantised \({method}\).*; (load|give) ") as refusal:
        opened(folder)
    assert quantisation(opened(folder, quantised=True).model.config) == method
    assert ("save_original_format=False" in str(refusal.value)) == (method in DEQUANTISING)


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.method in DEQUANTISING])
def test_the_way_out(name, tmp_path):
    folder = quantised(name, tmp_path / "quantised")
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=FORMATS[name].loaded, dtype=torch.bfloat16, experts_implementation="eager"
    )
    model.save_pretrained(tmp_path / "plain", save_original_format=False)
    plain = opened(tmp_path / "plain")
    assert all(torch.equal(plain[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "key", ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight", "self_attn.q_proj"]
)
@pytest.mark.parametrize("name", ["fp8, keys renamed", "bitsandbytes"])
def test_a_tensor_that_is_missing(name, key, tmp_path):
    folder = quantised(name, tmp_path / "quantised")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({own: tensor for own, tensor in tensors.items() if key not in own}, file)
    with pytest.raises(BadInputError, match=rf"{key}.* is missing"):
        opened(folder, quantised=True)


def test_a_left_over_setting(single, saved, tmp_path):
    edit_config(quantization_config={"quant_method": "fp8"})(single)
    checkpoint = opened(single)
    assert quantisation(checkpoint.model.config) is None
    assert all(torch.equal(tensor, opened(saved / "single")[name]) for name, tensor in checkpoint.items())
    apply(align(saved / "single", single), single, tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out")
