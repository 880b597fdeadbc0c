"""The paper's setting: dense, then Mixtures of Experts, then fine-tuned, then aligned and merged."""

import json

import align_and_merge
import finetune_gpt2_moe
import finetune_vit_moe
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoTokenizer

from hf_moe_lmc.modeling import MoeGPT2LMHeadModel, MoeViTForImageClassification

EXPERTS = ["--num_experts", "3", "--moe_intermediate_size", "8", "--seeds", "1", "2"]
QUIET = ["--report_to", "none", "--disable_tqdm", "True"]


def weights(folder):
    auto = AutoModelForImageClassification if "vit" in folder.parts else AutoModelForCausalLM
    return auto.from_pretrained(folder).state_dict()


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "vit"
    sizes = ["--max_train_samples", "128", "--max_eval_samples", "32", "--max_steps", "2"]
    finetune_vit_moe.main([*sizes, *EXPERTS, *QUIET, "--output_dir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory, tiny_text):
    folder = tmp_path_factory.mktemp("run") / "gpt2"
    finetune_gpt2_moe.main([*tiny_text, *EXPERTS, "--max_steps", "2", "--output_dir", str(folder)])
    return folder


@pytest.mark.parametrize(("run", "cls"), [("vit", MoeViTForImageClassification), ("gpt2", MoeGPT2LMHeadModel)])
def test_copies_of_one_dense_model_are_fine_tuned_apart(run, cls, request):
    folder = request.getfixturevalue(run)
    auto = AutoModelForImageClassification if run == "vit" else AutoModelForCausalLM
    model = auto.from_pretrained(folder / "seed-1")
    assert type(model) is cls
    assert model.config.moe_layers == [0]
    dense, first, second = (weights(folder / name) for name in ("dense", "seed-1", "seed-2"))
    assert any(name.endswith("mlp.experts.up_proj") for name in first)
    assert not any(torch.equal(first[name], second[name]) for name in first if "experts" in name and "bias" not in name)
    assert {name for name in dense if ".0.mlp." not in name} <= first.keys()
    assert json.loads((folder / "seed-1/eval_results.json").read_text())["eval_loss"] > 0


def test_what_is_finished_is_not_trained_again(vit):
    before = {file: file.stat().st_mtime_ns for file in vit.rglob("*.safetensors")}
    finetune_vit_moe.main([*EXPERTS, *QUIET, "--output_dir", str(vit)])
    assert {file: file.stat().st_mtime_ns for file in vit.rglob("*.safetensors")} == before


def test_a_frozen_backbone_stays_as_it_was(vit, tmp_path):
    arguments = ["--dense_model", str(vit / "dense"), "--freeze_backbone", "True", "--dataset", str(images(tmp_path))]
    finetune_vit_moe.main([*arguments, *EXPERTS, *QUIET, "--max_steps", "2", "--output_dir", str(tmp_path / "vit")])
    dense, first = weights(vit / "dense"), weights(tmp_path / "vit/seed-1")
    kept = {name for name in dense if ".0.mlp." not in name}
    assert all(torch.equal(dense[name], first[name]) for name in kept)


def images(folder):
    """A folder of images per class and split."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in map(str, range(10)):
            (folder / "images" / split / name).mkdir(parents=True)
            pixels = generator.integers(0, 256, (28, 28), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / split / name / "a.png")
    return folder / "images"


@pytest.mark.parametrize("run", ["vit", "gpt2"])
def test_align_and_merge_writes_everything(run, request, manual, tmp_path, capsys):
    folder, output = request.getfixturevalue(run), tmp_path / run
    data = ["--dataset", manual, "--block_size", "16"] if run == "gpt2" else []
    copies = [str(folder / "seed-1"), str(folder / "seed-2")]
    align_and_merge.main(
        [
            *copies,
            *data,
            "--t",
            "0.5",
            "1",
            "--points",
            "3",
            "--max_eval_samples",
            "16",
            "--force",
            "--output",
            str(output),
        ]
    )
    printed = capsys.readouterr().out
    assert "| layer | distance before | after | experts permuted |" in printed
    report = json.loads((output / "path/report.json").read_text())
    assert report["examples"] == 12
    assert {"naive", "units", "aligned", "aligned + norms"} <= report["paths"].keys()
    assert (output / "alignment/alignment.safetensors").exists()
    reference, middle, end = (weights(p) for p in (folder / "seed-1", output / "merged/t-0.5", output / "merged/t-1"))
    for name, tensor in middle.items():
        if "expert" not in name:  # those are averaged in the scales of the reference
            torch.testing.assert_close(tensor, (reference[name] + end[name]) / 2)
    if run == "gpt2":
        AutoTokenizer.from_pretrained(output / "merged/t-0.5")
