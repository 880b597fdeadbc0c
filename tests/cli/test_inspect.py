import json
from dataclasses import replace

import pytest

from hf_moe_lmc import cli
from hf_moe_lmc.adapters import inspect
from hf_moe_lmc.cli.inspect import fold
from tests import families, models


def save_config(model, folder):
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    return str(folder)


def test_a_table(tmp_path, capsys):
    model = families.build("deepseek_v3")
    assert cli.main(["inspect", save_config(model, tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["layers", "E", "F", "H"]
    assert lines[1].split()[:8] == ["model.layers.1-2.mlp", "12", "24", "32", "3", "3", "1", "x"]
    assert lines[1].endswith(
        "experts in 3 groups, units, unit signs, unit scales, shared units, shared unit signs, shared unit scales, "
        "selection bias constant"
    )
    assert lines[3].startswith("DeepseekV3ForCausalLM: 2 Mixture-of-Experts layers, ")
    assert len(lines) == 4


def test_json(tmp_path, capsys):
    model = models.build("moe_vit shared")
    assert cli.main(["inspect", "--json", save_config(model, tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [layer["name"] for layer in found["layers"]] == ["vit.layers.0.mlp", "vit.layers.2.mlp"]
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
    layers = inspect(families.build(name)).layers
    rows = fold(layers)
    assert [row for row, _ in rows] == folded


def test_numbers_with_a_step_are_short():
    layer = inspect(models.build("mixtral")).layers[0]
    layers = [replace(layer, name=f"model.layers.{i}.mlp") for i in range(1, 32, 2)]
    assert [row for row, _ in fold(layers)] == ["model.layers.1,3,...,31.mlp"]
    layers = [replace(layer, name=f"model.layers.{i}.mlp") for i in (0, 1, 2, 5)]
    assert [row for row, _ in fold(layers)] == ["model.layers.0-2,5.mlp"]


def test_a_family_that_is_refused_is_refused_by_name(tmp_path, capsys):
    model = families.build("doge")
    assert cli.main(["inspect", save_config(model, tmp_path)]) == 3
    shown = capsys.readouterr().err
    assert shown.startswith("error: layer model.layers.0.mlp: a doge.DogeCDMoE: ")
    assert shown.count("\n") == 1
