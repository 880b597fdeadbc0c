import json
from copy import deepcopy

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_moe_lmc import Alignment, scramble
from hf_moe_lmc.cli import main
from tests.connectivity import finetuned


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two checkpoints, the second one scrambled, their tokenizer (one token per character), and text."""
    out = tmp_path_factory.mktemp("evaluate")
    characters = {"<unk>": 0, "\n": 1} | {chr(i): i - 30 for i in range(32, 127)}
    tokenizer = Tokenizer(models.WordLevel(characters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    a, b = finetuned.pair("qwen2_moe")
    scrambled, planted = scramble(deepcopy(b), seed=3)
    for name, model in (("a", a), ("b", scrambled)):
        model.save_pretrained(out / name)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(out / name)
    planted.inverse().save_pretrained(out / "alignment")
    names = {number: character for character, number in characters.items()}
    tokens = finetuned.held_out(0, 24)
    (out / "manual.txt").write_text("".join(names[int(x)] for i in range(24) for x in tokens[i]["input_ids"]))
    return out


def run(folder, out, *arguments: str) -> int:
    common = ["--dataset", str(folder / "manual.txt"), "--length", "32", "--points", "3"]
    models = ["evaluate", str(folder / "a"), str(folder / "b")]
    return main([*models, *common, "--experts-implementation", "eager", "-o", str(out), *arguments])


def test_the_whole_command(folder, tmp_path, capsys):
    """From two folders and a text file to a report; with the planted alignment, the figures are those of the search."""
    calibrated = ("--calibration-examples", "8", "--max-examples", "12")
    assert run(folder, tmp_path / "found", *calibrated) == 0
    printed = capsys.readouterr().out
    assert run(folder, tmp_path / "planted", *calibrated, "--alignment", str(folder / "alignment")) == 0
    found, planted = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("found", "planted"))
    assert found["examples"] == 12
    assert found["predictions"] == 12 * 31
    assert (tmp_path / "found/report.md").read_text() in printed
    assert found["paths"]["naive"]["loss_barrier"] > 20 * found["paths"]["aligned"]["loss_barrier"]
    assert found["paths"]["aligned"]["loss"] == pytest.approx(planted["paths"]["aligned"]["loss"], abs=1e-5)
    assert isinstance(Alignment.from_pretrained(folder / "alignment"), Alignment)


def test_without_calibration(folder, tmp_path):
    options = ["--calibration-examples", "0", "--max-examples", "4", "--arrangements", "aligned", "--dtype", "bfloat16"]
    options += ["--metrics", "expected_calibration_error", "--repair", "norms", "router"]  # the second one needs data
    assert run(folder, tmp_path / "out", *options) == 0
    found = json.loads((tmp_path / "out/report.json").read_text())
    assert list(found["paths"]) == ["naive", "naive + norms", "aligned", "aligned + norms"]
    assert found["dtype"] == "bfloat16"
    assert found["repair"] is None
    errors = found["paths"]["naive"]["metrics"]["expected_calibration_error"]
    assert all(0 < error < 1 for error in errors)


def test_too_little_data(folder, tmp_path, capsys):
    assert run(folder, tmp_path / "out", "--calibration-examples", "24") == 3
    assert "gives 24 examples, of which 24 are set apart" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_outputs_that_are_taken(folder, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    assert run(folder, out, "--overwrite") == 5
    assert "holds files that are no report" in capsys.readouterr().err
    (out / "thesis.txt").rename(out / "report.json")
    assert run(folder, out) == 5
    assert "replace it with --overwrite" in capsys.readouterr().err
    assert run(folder, out / "report.json") == 5
    assert (out / "report.json").read_text() == "precious"


def test_a_merge_of_the_evaluated_model(folder, tmp_path, capsys):
    """With the data of `evaluate`, `merge --repair` records it; test_repaired_merge compares the two."""
    data = ["--dataset", str(folder / "manual.txt"), "--length", "32", "--calibration-examples", "8"]
    models = [str(folder / "a"), str(folder / "b"), "--experts-implementation", "eager"]
    out = ["-o", str(tmp_path / "merged")]
    assert main(["merge", *models, *data, "--repair", "moments", *out]) == 0
    record = json.loads((tmp_path / "merged" / "hf_moe_lmc_manifest.json").read_text())
    assert record["calibration"]["source"] == {
        "dataset": "manual.txt", "split": "train", "length": 32, "calibration-examples": 8, "batch-size": 8
    }  # fmt: skip
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "--repair moments --dataset manual.txt --split train --length 32" in card
    assert "one after the other: moments.\nCalibrated on manual.txt.\n" in card
    assert main(["merge", *models, "--repair", "norms", "gram", "-o", str(tmp_path / "without-data")]) == 0
    card = (tmp_path / "without-data" / "README.md").read_text()
    assert "--t 0.5 --repair norms gram -o merged" in card
    assert "Calibrated" not in card
    capsys.readouterr()
    assert main(["merge", *models, "--repair", "rescale", "-o", str(tmp_path / "more")]) == 3
    assert "--repair needs calibration data: give --dataset; norms and gram need none" in capsys.readouterr().err
    assert main(["merge", *models, "--repair", "auto", "norms", *data, "-o", str(tmp_path / "more")]) == 3
    assert "--repair auto chooses all repairs" in capsys.readouterr().err
