"""Pairs that do not belong together, by the command line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_moe_lmc import cli
from hf_moe_lmc.alignment import CheckedModels
from hf_moe_lmc.alignment.difference import Difference
from hf_moe_lmc.checkpoints import MANIFEST_NAME
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
def test_settings(reference, other, tmp_path, capsys, fields, line):
    edit_config(**fields)(other)
    found = failed(capsys, tmp_path / "out", "merge", reference, other)
    assert found.code == 4
    assert line in found.line
    assert f"--allow-difference {min(set(fields) - {'bos_token_id'})}" in found.line


def test_an_alignment_needs_no_equal_settings(reference, other, tmp_path, capsys):
    edit_config(rms_norm_eps=1e-6)(other)
    assert cli.main(["align", str(reference), str(other), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    warning = "rms_norm_eps is 1e-05 in the reference, 1e-06 in the other; a merge needs that to be allowed"
    assert f"warning: {warning}" in capsys.readouterr().err.splitlines()


def test_a_base_and_its_published_fine_tune(tmp_path, capsys):
    """Qwen3-30B-A3B-Base and Qwen3-30B-A3B, as far as their config.json differ, and what trainers write beside."""
    model = models.draw_weights(models.qwen2_moe())
    model.config.update({"max_position_embeddings": 32768, "max_window_layers": 48})
    model.save_pretrained(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "tuned")
    trainers = {"unsloth_fixed": True, "pretraining_tp": 1, "model_name": "x", "tokenizer_class": "Qwen2Tokenizer"}
    edit_config(max_position_embeddings=40960, max_window_layers=28, **trainers)(tmp_path / "tuned")
    worked(capsys, tmp_path / "out", "merge", tmp_path / "base", tmp_path / "tuned", "--expert-order", "none")


def test_a_difference_that_is_allowed_is_recorded(reference, other, tmp_path, capsys):
    edit_config(rms_norm_eps=1e-6, rope_parameters={"rope_theta": 1e4, "rope_type": "default"})(other)
    (other / "chat_template.jinja").write_text("{{ messages }}")
    flags = ["--expert-order", "none", "--allow-difference"]
    assert (
        "rms_norm_eps is"
        in failed(capsys, tmp_path / "no", "merge", reference, other, *flags, "rope_parameters", "rms_norm").line
    )
    worked(capsys, tmp_path / "out", "merge", reference, other, *flags, "rms_norm_eps", "rope_parameters")
    texts = [
        "rms_norm_eps is 1e-05 in the reference, 1e-06 in the other",
        "rope_parameters.rope_theta is 1000000.0 in the reference, 10000.0 in the other",
    ]
    manifest = json.loads((tmp_path / "out" / MANIFEST_NAME).read_text())
    assert list(manifest["allowed_differences"].values()) == texts
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"- Merged although {text}." in card.replace("\\", "") for text in texts)
    assert manifest["differences"] == ["the chat template is in the other only"]
    assert f"- Of the models, {manifest['differences'][0]}." in card
    assert "--allow-difference rms_norm_eps rope_parameters.rope_theta --t 0.5" in card


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    """Two models, the second with three more tokens, and their tokenizers."""
    folder = tmp_path_factory.mktemp("vocabularies")
    for name, size, seed in (("small", 31, 0), ("large", 34, 1)):
        model = models.draw_weights(models.mixtral(vocab_size=size), seed)
        model.save_pretrained(folder / name)
        vocabulary = {f"t{number}": number for number in range(size)}
        (folder / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    return folder


@pytest.mark.parametrize("sides", [("small", "large"), ("large", "small")])
@pytest.mark.parametrize(("vocabulary", "rows"), [("common", 31), ("union", 34)])
def test_a_vocabulary_that_extends_the_other(vocabularies, tmp_path, capsys, sides, vocabulary, rows):
    flags = ["--expert-order", "none", "--t", "0.25", "--vocabulary", vocabulary]
    worked(capsys, tmp_path / "out", "merge", *(vocabularies / side for side in sides), *flags)
    a, b = (load_file(vocabularies / side / "model.safetensors") for side in sides)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in merged.items():
        expected = torch.lerp(a[name][:31], b[name][:31], 0.25)
        torch.testing.assert_close(tensor[:31], expected)
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            large = a if sides[0] == "large" else b
            assert torch.equal(tensor[31:], large[name][31:rows])
            assert len(tensor) == rows
    whose = vocabularies / ("small" if vocabulary == "common" else "large") / "tokenizer.json"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == whose.read_bytes()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.vocab_size == rows
    assert f"--vocabulary {vocabulary}" in (tmp_path / "out" / "README.md").read_text()


def test_vocabularies_that_do_not_fit(vocabularies, reference, other, tmp_path, capsys):
    small, large = vocabularies / "small", shutil.copytree(vocabularies / "large", tmp_path / "large")
    line = failed(capsys, tmp_path / "out", "merge", small, large, "--allow-difference", "vocab_size").line
    assert "has 31 rows in the reference, 34 in the other" in line
    assert "--vocabulary common or union" in line
    assert "resize_token_embeddings" in line
    vocabulary = {f"t{number}": (number + 1) % 34 for number in range(34)}
    (large / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    line = failed(capsys, tmp_path / "out", "merge", small, large, "--vocabulary", "union").line
    assert "token 't0' is 0 in the reference, 1 in the other" in line
    assert cli.main(["align", str(small), str(large), "-o", str(tmp_path / "alignment"), "--quiet"]) == 0


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


def test_a_message_of_many_differences_is_cut():
    many = CheckedModels(
        (), tuple(Difference(f"field_{n}", f"field_{n} differs", harmful=n % 2 == 0) for n in range(20))
    )
    with pytest.raises(IncompatiblePairError, match=r"^field_0 .*field_10 differs; and 4 more; .*-difference field_0$"):
        many.check_mergeable()
    assert not CheckedModels((), many.differences[1:2]).check_mergeable()


def test_what_is_allowed_is_listed(reference, other, capsys, tmp_path):
    def halve(tensors):
        tensors[ROUTER] = tensors[ROUTER].bfloat16()

    edit_tensors(ROUTER, halve)(other)
    edit_config(bos_token_id=7, dtype="bfloat16")(other)
    (other / "tokenizer.json").unlink()
    (other / "chat_template.jinja").write_text("{{ messages }}")
    assert cli.main(["merge", str(reference), str(other), "-o", str(tmp_path / "out"), "--dry-run"]) == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("difference: ")]
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
