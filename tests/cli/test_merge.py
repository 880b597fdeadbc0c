"""`hf-moe-lmc merge` of three models and more, with alignments that are given, and without any."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from hf_moe_lmc import align, cli, merge, scramble
from hf_moe_lmc.alignment import pairwise
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


def same(x, y) -> bool:
    return x.keys() == y.keys() and all(torch.equal(tensor, y[name]) for name, tensor in x.items())


@pytest.fixture(scope="module")
def merged(models) -> Path:
    out = Path(models[0]).parent / "merged"
    assert cli.main(["merge", *models, "--shares", "2", "1", "1", "-o", str(out)]) == 0
    return out


def test_the_mean_is_that_of_the_library(models, merged, tmp_path):
    merge(models[0], models[1:], output=tmp_path / "expected", shares=[0.5, 0.25, 0.25])
    assert same(weights(merged), weights(tmp_path / "expected"))


def test_shares_are_optional_and_matter(models, merged, tmp_path):
    assert cli.main(["merge", *models, "-o", str(tmp_path / "even")]) == 0
    name = "model.layers.0.mlp.experts.down_proj"
    assert not torch.equal(weights(tmp_path / "even")[name], weights(merged)[name])


def test_the_card(models, merged):
    card = ModelCard.load(merged / "README.md")
    assert "# a, b and c, aligned and merged\n" in card.text
    assert "every weight is their mean, with the shares in the table" in card.text
    assert [line.split(" | ")[:2] for line in card.text.splitlines() if "| local folder |" in line] == [
        ["| reference", "a"],
        ["| other 1", "b"],
        ["| other 2", "c"],
    ]
    assert card.text.index("**b**") < card.text.index("**c**")
    assert "hf-moe-lmc merge a b c --expert-order auto --shares 0.5 0.25 0.25 -o merged\n" in card.text
    assert (card.data.license, card.data.base_model) == ("apache-2.0", ["org/base"])
    assert card.data.to_dict()["base_model_relation"] == "merge"
    assert models[0] not in card.content


def test_the_command_of_the_card_makes_it_again(models, merged, monkeypatch):
    monkeypatch.chdir(merged.parent)
    command = next(
        line for line in (merged / "README.md").read_text().splitlines() if line.startswith("hf-moe-lmc merge")
    )
    assert cli.main([*command.split()[1:-1], "again"]) == 0
    assert same(weights(merged), weights(merged.parent / "again"))


def test_it_is_published(merged, hub, tmp_path):
    assert cli.main(["push", str(merged), "org/abc"]) == 0
    files = hub.repositories["org/abc"].files
    record = json.loads(files["hf_moe_lmc_manifest.json"])
    assert [model["name"] for model in record["models"]] == ["a", "b", "c"]
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
    ("options", "code", "line"),
    [
        (["--t", "0.5"], 3, "t is a point between two models; several models, and shares, take no t"),
        (["--t", "0.5", "--shares", "1", "1", "1"], 2, "--t and --shares both set the weights"),
        (["--shares", "1", "2"], 3, "give one per model"),
        (["--shares", "1", "-2", "3"], 3, "give one per model, not all 0, none negative unless"),
    ],
)
def test_arguments_that_do_not_go_together(options, code, line, models, tmp_path, capsys):
    assert cli.main(["merge", *models, *options, "-o", str(tmp_path / "out")]) == code
    assert line in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_shares_of_two_are_their_t(models, tmp_path):
    for name, options in (("t", ["--t", "0.25"]), ("shares", ["--shares", "3", "1"])):
        assert cli.main(["merge", *models[:2], *options, "-o", str(tmp_path / name)]) == 0
    assert same(weights(tmp_path / "t"), weights(tmp_path / "shares"))


def test_given_alignments(models, tmp_path):
    """One for each other, in their order; those that are missing, or of another model, are refused."""
    for name, model in zip("bc", models[1:], strict=True):
        align(models[0], model, output=tmp_path / name)
    command, files = ["merge", *models, "--alignment"], [str(tmp_path / name) for name in "bc"]
    assert cli.main([*command, *files, "-o", str(tmp_path / "out")]) == 0
    expected = merge(models[0], models[1:], alignment=[align(models[0], model) for model in models[1:]])
    assert same(weights(tmp_path / "out"), expected.state_dict())
    record = json.loads((tmp_path / "out/hf_moe_lmc_manifest.json").read_text())
    assert record["alignments"] == [align(models[0], model).digest for model in models[1:]]
    assert cli.main([*command, *files[:1], "-o", str(tmp_path / "one")]) == 3
    assert cli.main([*command, *reversed(files), "-o", str(tmp_path / "reversed")]) == 4
    assert not (tmp_path / "one").exists()
    assert not (tmp_path / "reversed").exists()


@pytest.mark.parametrize("number", [2, 3])
def test_without_alignment(number, models, tmp_path, monkeypatch, capsys):
    """The plain mean of every weight; nothing is matched, and the record says so."""
    monkeypatch.setattr(pairwise, "align_layers", None)
    chosen = models[:number]
    assert cli.main(["merge", *chosen, "--expert-order", "none", "-o", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(tmp_path / "out")
    states = [weights(Path(model)) for model in chosen]
    for name, tensor in weights(tmp_path / "out").items():
        torch.testing.assert_close(tensor, sum(state[name] for state in states) / number)
    record = json.loads((tmp_path / "out/hf_moe_lmc_manifest.json").read_text())
    assert record["alignments"] == [None] * (number - 1)
    plan = ["merge", *chosen, "--expert-order", "none", "-o", str(tmp_path / "other"), "--dry-run"]
    assert cli.main(plan) == 0


def test_repairs_of_several(models, tmp_path):
    """Repairs that need no data; the same as in Python."""
    assert cli.main(["merge", *models, "--repair", "norms", "gram", "-o", str(tmp_path / "out")]) == 0
    found = weights(tmp_path / "out")
    assert same(found, merge(models[0], models[1:], repairs=["norms", "gram"]).state_dict())
    assert not same(found, merge(models[0], models[1:]).state_dict())
