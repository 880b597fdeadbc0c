"""Faults of config.json."""

import os
import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.checkpoints.faulty import edit_config, edit_json

CONTENTS = {
    "nested, but not for JSON": (b'{"a":' * 900 + b"1" + b"}" * 900, "is nested too deeply"),
    "empty": (b"", "is not valid JSON"),
    "cut off": (b'{"model_type": "mix', "is not valid JSON"),
    "UTF-16": ('{"model_type": "mixtral"}'.encode("utf-16"), "is not UTF-8 text"),
    "a list": (b"[]", "holds a JSON list"),
    "nested": (b'{"a":' * 100_000, "is nested too deeply"),
    "nothing": (b"{}", "does not know model_type None"),
    "duplicate keys": (b'{"model_type": "mixtral", "model_type": "mixtral"}', "occurs twice"),
}


@pytest.mark.parametrize("fault", CONTENTS)
def test_no_configuration(single, refused, fault):
    content, words = CONTENTS[fault]
    (single / "config.json").write_bytes(content)
    refused(single, "config.json", words)


@pytest.mark.parametrize(
    "make", [lambda file: None, lambda file: file.mkdir(), os.mkfifo, lambda f: f.symlink_to("no")]
)
def test_no_file(single, refused, make):
    (single / "config.json").unlink()
    make(single / "config.json")
    refused(single, "config.json")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "unheard_of"}, ["config.json", "does not know model_type 'unheard_of'"]),
        ({"model_type": "olmoe"}, ["MixtralForCausalLM", "olmoe"]),
        ({"architectures": ["OlmoeForCausalLM"]}, ["OlmoeForCausalLM"]),
        ({"architectures": ["MixtralConfig"]}, ["MixtralConfig"]),
        ({"architectures": "MixtralForCausalLM"}, ["config.json: architectures is 'MixtralForCausalLM'"]),
        ({"architectures": 5}, ["config.json: architectures is 5"]),
        ({"architectures": [5]}, ["config.json: architectures is [5]"]),
        ({"hidden_size": 24}, ["shape", "config.json makes it"]),
        ({"hidden_size": 0}, ["config.json"]),
        ({"hidden_size": -12}, ["hidden_size is -12"]),
        ({"hidden_size": "12"}, ["config.json"]),
        ({"hidden_size": 12.5}, ["config.json"]),
        ({"hidden_size": None}, ["config.json"]),
        ({"hidden_size": [12]}, ["config.json"]),
        ({"hidden_size": 10**30}, ["hidden_size is 1000"]),
        ({"intermediate_size": 8}, ["shape", "config.json makes it"]),
        ({"vocab_size": 32}, ["shape (31, 12); config.json makes it (32, 12)"]),
        ({"num_hidden_layers": 1}, ["model.layers.1.", "is not part of a MixtralForCausalLM"]),
        ({"num_hidden_layers": 3}, ["model.layers.2.", "is missing"]),
        ({"num_hidden_layers": 10**6}, ["num_hidden_layers is 1000000"]),
        ({"num_hidden_layers": 2000, "num_local_experts": 9999}, ["2000 layers of 9999 experts; expected at most"]),
        ({"num_labels": 10**8}, ["num_labels is 100000000; expected 0 to 100000"]),
        ({"text_config": {"num_labels": 10**8}}, ["num_labels is 100000000"]),
        ({"num_hidden_layers": 0}, ["has no Mixture-of-Experts layer"]),
        ({"num_local_experts": 6}, ["model.layers.0", "config.json makes it"]),
        ({"num_local_experts": 4}, ["model.layers.0", "config.json makes it"]),
        ({"num_local_experts": 0}, ["config.json"]),
        ({"num_experts_per_tok": 0}, ["num_experts_per_tok is 0; expected 1 to 5"]),
        ({"num_experts_per_tok": 6}, ["num_experts_per_tok is 6; expected 1 to 5"]),
        ({"num_experts_per_tok": -1}, ["num_experts_per_tok is -1"]),
        ({"hidden_act": "no_such_act"}, ["config.json"]),
        ({"hidden_act": ["silu"]}, ["config.json"]),
        ({"rms_norm_eps": "small"}, ["config.json"]),
        ({"dtype": "float3"}, ["config.json"]),
        ({"dtype": 3}, ["config.json"]),
        ({"rope_parameters": {"rope_type": "no_such_rope"}}, ["config.json"]),
        ({"rope_parameters": "default"}, ["config.json"]),
        ({"quantization_config": "fp8"}, ["config.json"]),
    ],
    ids=str,
)
def test_fields_that_cannot_be(single, refused, fields, words):
    edit_config(**fields)(single)
    refused(single, *words)


@pytest.mark.parametrize(
    ("model_type", "architecture", "part"),
    [
        ("dbrx", "DbrxForCausalLM", {"ffn_config": {"moe_num_experts": 4, "moe_top_k": 5}}),
        ("dbrx", "DbrxForCausalLM", {"ffn_config": {"moe_num_experts": 4, "moe_top_k": 0}}),
        ("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", {"text_config": {"num_experts_per_tok": 0}}),
        ("qwen3_moe", "Qwen3MoeForCausalLM", {"num_experts_per_tok": 129}),
    ],
)
def test_impossible_choices_in_nested_configurations(single, refused, model_type, architecture, part):
    """Also where the number of experts is the family's default."""
    edit_json(single / "config.json", lambda values: values.clear())
    edit_config(model_type=model_type, architectures=[architecture], **part)(single)
    refused(single, "config.json", "the number of experts")


def test_a_dense_model(tmp_path, refused):
    config = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=11, bos_token_id=None
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    refused(tmp_path / "dense", "no Mixture-of-Experts layer")


REMOTE = {
    "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
    "attn_implementation": "someone/kernels",
    "_attn_implementation": "someone/kernels",
    "_attn_implementation_internal": "someone/kernels",
    "_experts_implementation_internal": "someone/kernels",
    "experts_implementation": "someone/kernels",
    "custom_pipelines": {"evil": {"impl": "evil.Evil"}},
    "trust_remote_code": True,
}


@pytest.mark.parametrize("field", REMOTE)
def test_fields_that_name_code_run_none(single, tmp_path, accepted, field):
    (single / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    edit_config(**{field: REMOTE[field]})(single)
    out = accepted(single)
    assert not (out / "evil.py").exists()
    assert AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    assert not (tmp_path / "ran").exists()


def test_c_locale(saved, tmp_path):
    """A real process without a locale: names beyond ASCII, and a message that holds one."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LC_")} | {"LC_ALL": "C"}
    environment |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    folder, out = tmp_path / "ünd weiß", tmp_path / "ünd weiß out"
    folder.symlink_to(saved / "single")
    out.write_text("mine")
    command = [sys.executable, "-m", "hf_moe_lmc", "merge", str(saved / "single"), str(folder), "-o", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=100)
    assert done.returncode == 5, done.stderr
    assert done.stderr.splitlines()[-1].startswith(b"error: ")
    assert done.stderr.endswith(b" is a file; give another output\n")
