"""Mistakes that people make: each gets its exit code and one line: the thing, the reason and the next step."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_moe_lmc import cli, scramble
from tests import models
from tests.checkpoints.faulty import edit_config

DATA = ("--dataset", "text.txt", "--length", "4", "--calibration-examples", "2")

# Words on the command line -> exit code, and words of the line.
MISTAKES = [
    ("align a SS -o out", 6, ["no folder 'SS' here (mistyped?), and"]),
    ("align a ./SS -o out", 3, ["'./SS' is neither a folder nor the name of a repository"]),
    ("align a text.txt -o out", 3, ["text.txt is not a folder"]),
    ("align a model.gguf -o out", 3, ["model.gguf is not a folder", "GGUF"]),
    ("align a gguf -o out", 3, ["GGUF"]),
    ("align a adapter -o out", 3, ["merge_and_unload"]),
    ("align a alignment -o out", 3, ["it is an alignment, perhaps swapped"]),
    ("apply b alignment -o out", 3, ["swapped"]),
    ("merge a b --t 2 -o out", 3, ["t is 2.0; choose a value from 0"]),
    ("merge a b --t nan -o out", 3, ["t is nan"]),
    ("merge a b --extrapolate --t 1e300 -o out", 3, ["a model has a share of -1e+300 in the sum"]),
    ("align a b --device privateuseone -o out", 3, ["privateuseone is no device that computes here"]),
    ("align a b --threads 99999999999999999999 -o out", 2, ["--threads: 99999999999999999999 is more than"]),
    ("align a dense -o out", 3, ["Mixture"]),
    ("inspect dense", 3, ["GPT2LMHeadModel has no Mixture-of-Experts layer; one of your own?"]),
    ("merge a truncated -o out", 3, ["truncated/model.safetensors has", "its header describes", "download it again"]),
    ("merge a pickles -o out", 3, ["holds no model.safetensors", "convert it first"]),
    ("merge a pointer -o out", 3, ["is a git-lfs pointer; fetch the file itself"]),
    ("merge a wrapped -o out", 3, ["_orig_mod. is of torch.compile; save the model that was compiled"]),
    ("merge a b -o nowhere/out", 5, ["nowhere, which is to hold out, is not a folder; create it first"]),
    ("merge a b -o gguf", 5, ["holds files, and no earlier output of this command; give another output"]),
    ("align a wider -o out", 4, ["down_proj has shape", "give two models of one size"]),
    ("align a family -o out", 4, ["give two models of one class"]),
    (
        "merge a top_k -o out",
        4,
        ["num_experts_per_tok is 2 in the reference, 3", "--allow-difference num_experts_per_tok"],
    ),
    ("merge a stranger -o out", 4, ["2 of 2 layers of stranger hold no expert related", "--force"]),
    ("evaluate a b --dataset nofile.txt -o out", 3, ["'nofile.txt' is neither a file, a folder nor"]),
    ("evaluate a b --dataset text.txt -o out", 3, ["a has no tokenizer that loads", "copy the files of one there"]),
    ("evaluate a b --dataset gguf -o out", 3, ["gguf holds .gguf; give files of one kind"]),
    ("evaluate a b --dataset text.txt --points -3 -o out", 3, ["three points or more"]),
    ("evaluate a b --dataset text.txt --points 2 -o out", 3, ["three points or more"]),
    ("evaluate a b --dataset text.txt --points 99999999999 -o out", 3, ["no 99999999999 points; give 10000 at most"]),
    ("evaluate a b --dataset text.txt --batch-size 0 -o out", 2, ["--batch-size: 0 is less than 1"]),
    ("evaluate a b --dataset text.txt --length 0 -o out", 2, ["--length: 0 is less than 2"]),
    ("align a b -o out --plot none/plot.png", 2, ["there is no folder none"]),
    ("align a b -o out --plot plot.xyz", 2, ["plot.xyz must end in one of .png"]),
    ("align a b -o text.txt", 5, ["text.txt"]),
    ("align a b -o a", 5, ["a"]),
    ("apply alignment b -o alignment/x", 5, ["lies in the input alignment"]),
    ("merge a b --alignment alignment -o alignment/x", 5, ["lies in the input alignment"]),
    ("apply alignment c -o out", 4, ["--allow-other-weights"]),
    ("apply newer b -o out", 3, ["install a newer hf_moe_lmc"]),
    ("merge a b --alignment b -o out", 3, ["b holds a model and no alignment"]),
    ("push a org/x --dry-run", 3, ["give a folder that merge, apply or align wrote"]),
    ("push nowhere org/x --dry-run", 3, ["there is no folder nowhere; give one that merge, apply or align wrote"]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pair, its alignment, and all kinds of things that are none."""
    folder: Path = tmp_path_factory.mktemp("mistakes")
    model = models.build("mixtral", dtype=torch.float32)
    model.save_pretrained(folder / "a")
    scramble(model)
    for name in ("b", "c"):
        model.save_pretrained(folder / name)
        with torch.no_grad():
            model.model.layers[0].mlp.experts.down_proj.mul_(1.01)
    models.build("mixtral", seed=1, dtype=torch.float32).save_pretrained(folder / "stranger")
    models.draw_weights(models.mixtral(intermediate_size=8)).save_pretrained(folder / "wider")
    models.build("qwen2_moe", dtype=torch.float32).save_pretrained(folder / "family")
    models.mixtral(num_local_experts=5).save_pretrained(folder / "top_k")
    edit_config(num_experts_per_tok=3)(folder / "top_k")
    for name in ("gguf", "adapter", "dense"):
        (folder / name).mkdir()
    (folder / "gguf" / "model.gguf").write_bytes(b"GGUF")
    (folder / "model.gguf").write_bytes(b"GGUF")
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "dense" / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})
    )
    for name in ("truncated", "pickles", "pointer", "wrapped"):
        shutil.copytree(folder / "a", folder / name)
    file = "model.safetensors"
    (folder / "truncated" / file).write_bytes((folder / "a" / file).read_bytes()[:-100])
    (folder / "pickles" / file).rename(folder / "pickles" / "pytorch_model.bin")
    (folder / "pointer" / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    wrapped = {f"_orig_mod.{key}": tensor for key, tensor in load_file(folder / "a" / file).items()}
    save_file(wrapped, folder / "wrapped" / file)
    (folder / "text.txt").write_text("a b c d " * 50)
    assert cli.main(["align", str(folder / "a"), str(folder / "b"), "-o", str(folder / "alignment"), "--quiet"]) == 0
    shutil.copytree(folder / "alignment", folder / "newer")
    config = folder / "newer" / "alignment_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"format": 9}))
    return folder


def exit_code(words: list[str]) -> int | str | None:
    try:
        return cli.main(words)
    except SystemExit as usage:
        return usage.code


@pytest.mark.parametrize(("words", "code", "says"), MISTAKES, ids=[words for words, _, _ in MISTAKES])
def test_a_mistake(words, code, says, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = sorted(path.name for path in folder.iterdir())
    assert exit_code(words.split()) == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert [word for word in says if word not in line] == []
    assert "not foreseen" not in line
    assert sorted(path.name for path in folder.iterdir()) == before


def test_an_unrelated_model_is_merged_by_force(folder, tmp_path, capsys):
    """And applied without."""
    pair = [str(folder / "a"), str(folder / "stranger")]
    assert cli.main(["merge", *pair, "--force", "--quiet", "-o", str(tmp_path / "merged")]) == 0
    assert "warning: 2 of 2 layers of " in capsys.readouterr().err
    assert cli.main(["align", *pair, "-o", str(tmp_path / "alignment")]) == 0
    assert cli.main(["apply", str(tmp_path / "alignment"), pair[1], "-o", str(tmp_path / "applied")]) == 0
    assert cli.main(["merge", str(folder / "a"), str(folder / "b"), "-o", str(tmp_path / "related")]) == 0
