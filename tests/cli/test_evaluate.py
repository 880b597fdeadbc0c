import json
from copy import deepcopy

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_moe_lmc import scramble
from hf_moe_lmc.alignment import pairwise
from hf_moe_lmc.cli import main
from tests.connectivity import siblings

EXAMPLES, LENGTH = 32, 32


def spoken(model, characters: int) -> torch.Tensor:
    """Blocks of characters that the model itself draws, so that it is right about many of them; `[N, LENGTH]`."""
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(2, characters, (EXAMPLES, 1), generator=generator)
    with torch.no_grad():
        for _ in range(LENGTH - 1):
            scores = model(input_ids=tokens, use_cache=False).logits[:, -1, 2:characters]
            tokens = torch.cat([tokens, 2 + torch.multinomial(scores.softmax(-1), 1, generator=generator)], dim=1)
    return tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two siblings, the second one scrambled, their tokenizer (one token per character), and what their parent says."""
    out = tmp_path_factory.mktemp("evaluate")
    characters = {"<unk>": 0, "\n": 1} | {chr(i): i - 31 for i in range(33, 127)}
    tokenizer = Tokenizer(models.WordLevel(characters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    a, b = siblings.pair("qwen2_moe")
    scrambled, planted = scramble(deepcopy(b), seed=3)
    for name, model in (("a", a), ("b", scrambled)):
        model.save_pretrained(out / name)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(out / name)
    planted.inverse().save_pretrained(out / "alignment")
    names = {number: character for character, number in characters.items()}
    tokens = spoken(siblings.base("qwen2_moe"), len(characters))
    (out / "text.txt").write_text("".join(names[x] for x in tokens.flatten().tolist()))
    return out


def run(folder, out, *arguments: str) -> int:
    common = ["--dataset", str(folder / "text.txt"), "--length", "32", "--points", "3"]
    models = ["evaluate", str(folder / "a"), str(folder / "b")]
    return main([*models, *common, "--experts-implementation", "eager", "-o", str(out), *arguments])


def test_the_whole_command(folder, tmp_path, capsys):
    """From two folders and a text file to a report; with the planted alignment, the figures are those of the search."""
    calibrated = ("--calibration-examples", "8", "--max-examples", "12", "--repair", "norms", "rescale")
    assert run(folder, tmp_path / "found", *calibrated) == 0
    printed = capsys.readouterr().out
    only_aligned = ("--variants", "aligned", "--alignment", str(folder / "alignment"))
    assert run(folder, tmp_path / "planted", *calibrated, *only_aligned) == 0
    found, planted = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("found", "planted"))
    assert found["examples"] == 12
    assert found["predictions"] == 12 * 31
    assert (tmp_path / "found/report.md").read_text() in printed
    assert found["paths"]["naive"]["loss_barrier"] > 5 * found["paths"]["aligned"]["loss_barrier"]
    assert found["paths"].keys() == planted["paths"].keys()
    for name, path in planted["paths"].items():
        assert found["paths"][name]["loss"] == pytest.approx(path["loss"], abs=1e-5)


def test_without_calibration(folder, tmp_path):
    options = ["--calibration-examples", "0", "--max-examples", "4", "--variants", "aligned", "--dtype", "bfloat16"]
    options += ["--metrics", "expected_calibration_error", "--repair", "norms", "router"]  # the second one needs data
    assert run(folder, tmp_path / "out", *options) == 0
    found = json.loads((tmp_path / "out/report.json").read_text())
    assert list(found["paths"]) == ["naive", "naive + norms", "aligned", "aligned + norms"]
    assert found["dtype"] == "bfloat16"
    assert found["repair"] == {}
    errors = found["paths"]["naive"]["metrics"]["expected_calibration_error"]
    assert all(0 < error < 1 for error in errors)


def test_too_little_data(folder, tmp_path, capsys):
    assert run(folder, tmp_path / "out", "--calibration-examples", "32") == 3
    assert "gives 32 examples, of which 32 are set apart" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_outputs_that_are_taken(folder, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    assert run(folder, out, "--overwrite") == 5
    assert "holds files, and no earlier output of this command" in capsys.readouterr().err
    (out / "report.json").write_text("{}")
    assert run(folder, out, "--overwrite") == 5
    assert f"{out / 'thesis.txt'} was not written by this package" in capsys.readouterr().err
    (out / "report.json").unlink()
    (out / "thesis.txt").rename(out / "report.json")
    assert run(folder, out) == 5
    assert "replace it with --overwrite" in capsys.readouterr().err
    assert run(folder, out / "report.json") == 5
    assert (out / "report.json").read_text() == "precious"


@pytest.mark.parametrize("t", ["0.5", "0.25"])
def test_a_merge_is_the_model_that_was_evaluated(t, folder, tmp_path):
    """Under a repair, on the same calibration data: the loss of the report, to the last digit."""
    data = ["--dataset", str(folder / "text.txt"), "--length", "32", "--calibration-examples", "8"]
    pair = [str(folder / "a"), str(folder / "b"), "--alignment", str(folder / "alignment")]
    eager, merged = ["--experts-implementation", "eager"], tmp_path / "merged"
    assert main(["merge", *pair, *data, *eager, "--repair", "rescale", "--t", t, "-o", str(merged)]) == 0
    evaluated = ["--points", "5", "--variants", "aligned", "--repair", "rescale", "-o", str(tmp_path / "report")]
    assert main(["evaluate", *pair, *data, *eager, *evaluated]) == 0
    # The merge is the reference of a path of its own.
    itself = ["evaluate", str(merged), str(merged), *data, *eager, "--variants", "naive", "--repair", "norms"]
    assert main([*itself, "--points", "3", "-o", str(tmp_path / "itself")]) == 0
    report, own = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("report", "itself"))
    along = report["paths"]["aligned + rescale"]
    assert own["paths"]["naive"]["loss"][0] == along["loss"][along["t"].index(float(t))]
    assert along["loss"] != report["paths"]["aligned"]["loss"]


@pytest.mark.parametrize(("variants", "matchings"), [(["naive"], 0), (["naive", "random"], 0), (["aligned"], 3)])
def test_only_what_is_evaluated_is_matched(variants, matchings, folder, tmp_path, monkeypatch):
    align_layers, asked = pairwise.align_layers, []

    def counted(*args):
        asked.append(args)
        return align_layers(*args)

    monkeypatch.setattr(pairwise, "align_layers", counted)
    options = ["--calibration-examples", "0", "--max-examples", "4", "--repair", "norms", "--variants", *variants]
    assert run(folder, tmp_path / "out", *options) == 0
    assert len(asked) == matchings


def test_a_merge_of_the_evaluated_model(folder, tmp_path, capsys):
    """With the data of `evaluate`, `merge --repair` records it."""
    data = ["--dataset", str(folder / "text.txt"), "--length", "32", "--calibration-examples", "8"]
    models = [str(folder / "a"), str(folder / "b"), "--experts-implementation", "eager"]
    out = ["-o", str(tmp_path / "merged")]
    assert main(["merge", *models, *data, "--repair", "moments", *out]) == 0
    record = json.loads((tmp_path / "merged" / "hf_moe_lmc_manifest.json").read_text())
    assert record["calibration"]["source"] == {
        "dataset": "text.txt", "split": "train", "length": 32, "calibration-examples": 8, "batch-size": 8
    }  # fmt: skip
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "--repair moments --dataset text.txt --split train --length 32" in card
    assert "one after the other: moments.\nCalibrated on text.txt.\n" in card
    assert main(["merge", *models, "--repair", "norms", "gram", "-o", str(tmp_path / "without-data")]) == 0
    card = (tmp_path / "without-data" / "README.md").read_text()
    assert "--t 0.5 --repair norms gram -o merged" in card
    assert "Calibrated" not in card
    capsys.readouterr()
    assert main(["merge", *models, "--repair", "rescale", "-o", str(tmp_path / "more")]) == 3
    assert "--repair needs calibration data: give --dataset; norms and gram need none" in capsys.readouterr().err
    assert main(["merge", *models, "--repair", "auto", "norms", *data, "-o", str(tmp_path / "more")]) == 3
    assert "--repair auto chooses among all repairs" in capsys.readouterr().err
