import json
from dataclasses import replace

import pytest
from transformers import DeepseekV3Config, LlamaConfig, LlamaForCausalLM

from hf_moe_lmc import cli
from hf_moe_lmc.adapters import inspect
from hf_moe_lmc.cli.inspect import fold, render
from tests import families, models
from tests.checkpoints.faulty import edit_config


def save_config(model, folder):
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    return str(folder)


def test_a_table(tmp_path, capsys):
    model = families.build("deepseek_v3")
    assert cli.main(["inspect", save_config(model, tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("DeepseekV3ForCausalLM: 2 Mixture-of-Experts and 1 dense layers, ")
    assert lines[2].split()[:4] == ["layers", "E", "F", "H"]
    assert lines[3].split()[:8] == ["model.layers.0.mlp", "1", "48", "32", "1", "1", "-", "-"]
    assert lines[3].endswith("B  units, unit signs, unit scales")
    assert lines[4].split()[:9] == ["model.layers.1-2.mlp", "12", "24", "32", "3", "3", "1", "x", "48"]
    assert lines[4].endswith(
        "experts in 3 groups, units, unit signs, unit scales, shared units, shared unit signs, shared unit scales, "
        "selection bias constant"
    )
    assert len(lines) == 5


def test_a_dense_layer_of_unknown_class_has_a_line_of_its_own():
    found = replace(inspect(models.build("mixtral")), unaligned=("model.layers.0.mlp", "model.layers.7.mlp"))
    assert render(found).splitlines()[1] == (
        "dense, class not known: merged as they are: model.layers.0.mlp, model.layers.7.mlp"
    )


def test_a_quantised_model_is_shown(tmp_path, capsys):
    """DeepSeek-V3 as published, out of its configuration."""
    fp8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
    DeepseekV3Config(
        architectures=["DeepseekV3ForCausalLM"], dtype="bfloat16", quantization_config=fp8
    ).save_pretrained(tmp_path)
    folder = str(tmp_path)
    assert cli.main(["inspect", folder]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[4:6]] == [
        ["model.layers.0-2.mlp", "1", "18432", "7168"],
        ["model.layers.3-60.mlp", "256", "2048", "7168"],
    ]
    assert lines[1].startswith("the weights are quantised (fp8); bytes are those after")
    assert cli.main(["inspect", "--json", folder]) == 0
    assert json.loads(capsys.readouterr().out)["quantisation"] == "fp8"
    edit_config(quantization_config={"quant_method": "gptq", "bits": 4})(tmp_path)
    assert cli.main(["inspect", folder]) == 0
    assert "quantised (gptq); not read here: give the 16-bit checkpoint" in capsys.readouterr().out


def test_json(tmp_path, capsys):
    model = models.build("moe_vit shared")
    assert cli.main(["inspect", "--json", save_config(model, tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [layer["name"] for layer in found["layers"]] == [f"vit.layers.{i}.mlp" for i in range(3)]
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["layers"][0]["experts_per_token"] == 2


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("switch_transformers", ["encoder.block.1.layer.1.mlp", "decoder.block.1.layer.2.mlp"]),
        ("ernie4_5_vl_moe", ["layers.1-2.mlp.text_moe", "layers.1-2.mlp.vision_moe"]),
    ],
)
def test_alike_layers_are_one_row(name, folded):
    rows = fold([layer for layer in inspect(families.build(name)).layers if layer.router])
    assert [row for row, _ in rows] == folded


def test_numbers_with_a_step_are_short():
    layer = inspect(models.build("mixtral")).layers[0]
    layers = [replace(layer, name=f"model.layers.{i}.mlp") for i in range(1, 32, 2)]
    assert [row for row, _ in fold(layers)] == ["model.layers.1,3,...,31.mlp"]
    layers = [replace(layer, name=f"model.layers.{i}.mlp") for i in (0, 1, 2, 5)]
    assert [row for row, _ in fold(layers)] == ["model.layers.0-2,5.mlp"]


def test_a_model_without_experts_is_refused_by_name(tmp_path, capsys):
    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    assert cli.main(["inspect", save_config(LlamaForCausalLM(config), tmp_path)]) == 3
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert "LlamaForCausalLM has no Mixture-of-Experts layer" in shown
    assert shown.count("\n") == 1
