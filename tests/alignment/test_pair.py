"""Pairs that do not belong together, by the command line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_moe_lmc import cli
from hf_moe_lmc.alignment import open_models
from hf_moe_lmc.errors import IncompatiblePairError
from tests import models
from tests.checkpoints.faulty import edit_config, edit_tensors, failed, worked

ROUTER = "model.layers.1.block_sparse_moe.gate.weight"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair") / "reference"
    models.build("mixtral", dtype=torch.float32).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}))
    return folder


@pytest.fixture
def other(reference, tmp_path):
    return shutil.copytree(reference, tmp_path / "other")


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"num_experts_per_tok": 3}, "num_experts_per_tok is 2 in the reference, 3 in the other"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-05 in the reference, 1e-06 in the other"),
        ({"sliding_window": 4}, "sliding_window is None in the reference, 4 in the other"),
        ({"hidden_act": "gelu"}, "hidden_act is 'silu' in the reference, 'gelu' in the other"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
            "rope_parameters.rope_theta is 1000000.0 in the reference, 10000.0 in the other",
        ),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is False in the reference, True in the other"),
        ({"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 3}, "num_attention_heads is 2"),
        ({"bos_token_id": 5, "rms_norm_eps": 1e-6, "use_cache": False}, "error: rms_norm_eps is 1e-05"),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["align", "merge"])
def test_settings(reference, other, tmp_path, capsys, command, fields, line):
    edit_config(**fields)(other)
    found = failed(capsys, tmp_path / "out", command, reference, other)
    assert found.code == 4
    assert line in found.line


def test_vocabulary(reference, other, tmp_path, capsys):
    (other / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 1, "b": 0}}}))
    found = failed(capsys, tmp_path / "out", "merge", reference, other)
    assert found.code == 4
    assert "tokenizer.json differs (token 'a' is 0 in the reference, 1 in the other)" in found.line


@pytest.mark.parametrize("name", ["qwen2_moe", "moe_gpt2 shared"])
def test_another_family(reference, tmp_path, capsys, name):
    models.build(name, dtype=torch.float32).save_pretrained(tmp_path / "other")
    found = failed(capsys, tmp_path / "out", "merge", reference, tmp_path / "other")
    assert found.code == 4
    assert "the reference is a MixtralForCausalLM, the other a " in found.line


@pytest.mark.parametrize(
    "fields", [{"num_local_experts": 4}, {"num_local_experts": 6}, {"intermediate_size": 8}], ids=str
)
def test_fewer_more_wider_experts(reference, tmp_path, capsys, fields):
    model = models.mixtral()
    for name, value in fields.items():
        setattr(model.config, name, value)
    type(model)(model.config).save_pretrained(tmp_path / "other")
    found = failed(capsys, tmp_path / "out", "merge", reference, tmp_path / "other")
    assert found.code == 4
    assert all(f"{name} is" in found.line for name in fields)
    assert "model.layers.0.mlp.experts.down_proj has shape" in found.line


def test_a_message_of_many_differences_is_cut(reference, other):
    fields = {f"unknown_{number}": number for number in range(20)}
    edit_config(**fields)(other)
    with pytest.raises(IncompatiblePairError, match=r"unknown_0 is .*unknown_1 .*; and 14 more$"):
        open_models([reference, other])


def test_what_is_allowed_is_listed(reference, other, capsys, tmp_path):
    def halve(tensors):
        tensors[ROUTER] = tensors[ROUTER].bfloat16()

    edit_tensors(ROUTER, halve)(other)
    edit_config(bos_token_id=7, dtype="bfloat16")(other)
    (other / "tokenizer.json").unlink()
    (other / "chat_template.jinja").write_text("{{ messages }}")
    assert cli.main(["merge", str(reference), str(other), "-o", str(tmp_path / "out"), "--dry-run"]) == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("allowed difference: ")]
    words = ["bos_token_id", "dtype", "1 tensors have another dtype", "no tokenizer", "chat template"]
    assert len(listed) == len(words)
    assert all(any(word in line for line in listed) for word in words)


def test_another_dtype_is_merged_in_the_references(reference, other, tmp_path, capsys):
    tensors = load_file(other / "model.safetensors")
    save_file({key: tensor.bfloat16() for key, tensor in tensors.items()}, other / "model.safetensors")
    worked(capsys, tmp_path / "out", "merge", reference, other, "--t", "0.5")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for key, tensor in tensors.items():
        assert merged[key].dtype == torch.float32
        assert torch.equal(merged[key], torch.lerp(tensor, tensor.bfloat16().float(), 0.5))
