"""Three models and more on the command line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from hf_moe_lmc import cli, merge_many_checkpoints, scramble
from tests.tiny_pair import save_pair


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    """Folders of three siblings, the last one independent enough to be moved on from where the first wants it."""
    folder = tmp_path_factory.mktemp("models")
    save_pair(folder)
    third, _ = scramble(AutoModelForCausalLM.from_pretrained(folder / "a"), seed=5)
    with torch.no_grad():
        for parameter in third.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(6)) * 0.02)
    third.save_pretrained(folder / "c")
    for name in "abc":
        (folder / name / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: org/base\n---\n")
    return [str(folder / name) for name in "abc"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.fixture(scope="module")
def merged(models) -> Path:
    out = Path(models[0]).parent / "merged"
    assert cli.main(["merge", *models, "--weights", "2", "1", "1", "-o", str(out)]) == 0
    return out


def test_the_mean_is_that_of_the_library(models, merged, tmp_path):
    merge_many_checkpoints(models, tmp_path / "expected", weights=[0.5, 0.25, 0.25])
    found, expected = weights(merged), weights(tmp_path / "expected")
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_weights_are_optional_and_matter(models, merged, tmp_path):
    assert cli.main(["merge", *models, "-o", str(tmp_path / "even")]) == 0
    name = "model.layers.0.mlp.experts.down_proj"
    assert not torch.equal(weights(tmp_path / "even")[name], weights(merged)[name])


def test_the_card(models, merged):
    card = ModelCard.load(merged / "README.md")
    assert "# a, b and c, aligned and merged\n" in card.text
    assert "weighted 0.5, 0.25, 0.25 in the order below" in card.text
    assert [line.split(" | ")[:2] for line in card.text.splitlines() if "| local folder |" in line] == [
        ["| reference", "a"],
        ["| other 1", "b"],
        ["| other 2", "c"],
    ]
    assert card.text.index("## Alignment of b") < card.text.index("## Alignment of c")
    assert "hf-moe-lmc merge a b c --weights 0.5 0.25 0.25 --expert-order auto -o merged\n" in card.text
    assert (card.data.license, card.data.base_model) == ("apache-2.0", ["org/base"])
    assert card.data.to_dict()["base_model_relation"] == "merge"
    assert models[0] not in card.content


def test_the_command_of_the_card_makes_it_again(models, merged, monkeypatch):
    monkeypatch.chdir(merged.parent)
    command = next(
        line for line in (merged / "README.md").read_text().splitlines() if line.startswith("hf-moe-lmc merge")
    )
    assert cli.main([*command.split()[1:-1], "again"]) == 0
    again = weights(merged.parent / "again")
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights(merged).items())


def test_it_is_published(merged, hub, tmp_path):
    assert cli.main(["push", str(merged), "org/abc"]) == 0
    files = hub.repositories["org/abc"].files
    record = json.loads(files["hf_moe_lmc_manifest.json"])
    assert [record[role]["name"] for role in ("reference", "other 1", "other 2")] == ["a", "b", "c"]
    assert str(merged.parent).encode() not in b"".join(files.values())
    spoilt = shutil.copytree(merged, tmp_path / "spoilt")
    file = next(spoilt.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert cli.main(["push", str(spoilt), "org/other"]) == 3


def test_for_machines(models, tmp_path, capsys):
    assert cli.main(["merge", *models, "-o", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [other["model"] for other in found["others"]] == models[1:]
    assert found["distance"] <= found["reference_distance"]
    assert all(other["layers"] for other in found["others"])


def test_a_dry_run(models, tmp_path, capsys):
    command = ["merge", "-o", str(tmp_path / "out"), "--dry-run", "--json"]
    plans = []
    for chosen in (models[:2], models):
        assert cli.main([*command, *chosen]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    assert plans[1]["read"] == 3 * plans[0]["read"] / 2
    assert plans[1]["memory"] > plans[0]["memory"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--t", "0.5"], "--t is for two models"),
        (["--alignment", "x"], "--alignment is for two models"),
        (["--keep-norms"], "--keep-norms is for two models"),
        (["--allow-other-weights"], "--allow-other-weights is for two models"),
    ],
)
def test_what_is_for_two_models(options, line, models, tmp_path, capsys):
    assert cli.main(["merge", *models, *options, "-o", str(tmp_path / "out")]) == 2
    assert line in capsys.readouterr().err


def test_weights_that_are_none(models, tmp_path, capsys):
    assert cli.main(["merge", *models[:2], "--weights", "1", "2", "-o", str(tmp_path / "out")]) == 2
    assert "--weights is for three models and more; two take --t" in capsys.readouterr().err
    assert cli.main(["merge", *models, "--weights", "1", "2", "-o", str(tmp_path / "out")]) == 3
    assert "give one per model" in capsys.readouterr().err
