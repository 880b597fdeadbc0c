"""`hf-moe-lmc evaluate` on data sets of a Hub."""

import json
import re

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, PreTrainedTokenizerFast
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_moe_lmc.cli import main
from tests.hub.data_sets import data_set, images, texts
from tests.hub.server import Failure, Repository
from tests.models import mixtral, moe_vit

CLASSES = 10


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """Two tiny language models of characters."""
    out = tmp_path_factory.mktemp("language")
    characters = {"<unk>": 0} | {chr(97 + i): 1 + i for i in range(26)}
    tokenizer = Tokenizer(models.WordLevel(characters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        mixtral().save_pretrained(out / name)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(out / name)
    return out


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """Two tiny image classifiers."""
    out = tmp_path_factory.mktemp("vision")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        moe_vit(num_channels=3, num_labels=CLASSES, moe_layers=[0]).save_pretrained(out / name)
        ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(out / name)
    return out


def run(folder, out, *arguments: str) -> int:
    models = ["evaluate", str(folder / "a"), str(folder / "b"), "--points", "3", "--variants", "naive"]
    plain = ["--calibration-examples", "0", "--repair", "norms", "--experts-implementation", "eager"]
    return main([*models, *plain, "-o", str(out), *arguments])


def path(out) -> dict:
    return json.loads((out / "report.json").read_text())["paths"]["naive"]


def drawn_texts(seed: int) -> list[str]:
    letters = np.random.default_rng(seed).integers(97, 123, (8, 24), dtype=np.uint8)
    return [row.tobytes().decode() for row in letters]


def test_texts_of_a_config_a_split_and_a_revision(language, tmp_path, data_hub):
    """The losses of the ends against those of a loop; another revision, config or split has other texts."""
    first, last = (
        data_set(small={"validation": texts(*drawn_texts(seed)), "test": texts("x")}, large={"test": texts("y")})
        for seed in (1, 2)
    )
    repository = data_hub.repositories["datasets/org/corpus"] = Repository(private=True, commits=[first, last])
    asked = ["--dataset", "org/corpus", "--dataset-config", "small", "--split", "validation", "--length", "8"]
    assert run(language, tmp_path / "out", *asked, "--dataset-revision", repository.shas[0]) == 0
    blocks = torch.tensor([ord(letter) - 96 for letter in "".join(drawn_texts(1))]).reshape(-1, 8)
    found = path(tmp_path / "out")
    for end, name in ((0, "a"), (-1, "b")):
        model = AutoModelForCausalLM.from_pretrained(language / name, experts_implementation="eager")
        with torch.no_grad():
            logits = model(input_ids=blocks).logits[:, :-1]
        expected = cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten())
        assert found["loss"][end] == pytest.approx(expected.item(), rel=1e-4)


def test_a_merge_says_which_revision_it_was_repaired_with(language, tmp_path, data_hub):
    """In its manifest, and in the command of its card."""
    repository = Repository(commits=[data_set(small={"train": texts(*drawn_texts(1))}), {}])
    data_hub.repositories["datasets/org/corpus"] = repository
    data = ["--dataset", "org/corpus", "--dataset-config", "small", "--dataset-revision", repository.shas[0]]
    models = [str(language / "a"), str(language / "b"), "--experts-implementation", "eager"]
    size = ["--length", "8", "--calibration-examples", "4"]
    assert main(["merge", *models, "--force", "--repair", "rescale", *data, *size, "-o", str(tmp_path / "merged")]) == 0
    record = json.loads((tmp_path / "merged/hf_moe_lmc_manifest.json").read_text())
    assert record["calibration"]["source"]["dataset-revision"] == repository.shas[0]
    assert f"--repair rescale {' '.join(data)} --split train" in (tmp_path / "merged/README.md").read_text()


def test_images_and_their_classes(vision, tmp_path, data_hub):
    """The columns of CIFAR-100; loss and accuracy of the ends against those of a loop."""
    rows = images(24, seed=5, fine_label=CLASSES, coarse_label=3)
    data_hub.repositories["datasets/org/cifar100"] = Repository(commits=[data_set(cifar100={"test": rows})])
    assert run(vision, tmp_path / "out", "--dataset", "org/cifar100") == 0
    found = path(tmp_path / "out")
    processor = ViTImageProcessorPil.from_pretrained(vision / "a")
    for end, name in ((0, "a"), (-1, "b")):
        model = AutoModelForImageClassification.from_pretrained(vision / name, experts_implementation="eager")
        pixels = processor(list(rows["img"]), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = model(pixel_values=pixels).logits
        labels = torch.tensor(list(rows["fine_label"]))
        assert found["loss"][end] == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-4)
        assert found["accuracy"][end] == pytest.approx((logits.argmax(-1) == labels).float().mean().item())


@pytest.mark.parametrize(("classes", "wrong"), [(12, "1[01]"), (1, "-1")])
def test_classes_that_the_model_does_not_have(classes, wrong, vision, tmp_path, data_hub, capsys):
    """Of another data set; of a split that is not labelled, as the Hub writes it."""
    rows = images(24, seed=5, label=classes)
    if classes == 1:
        rows = rows.map(lambda row: {"label": -1})
    data_hub.repositories["datasets/org/images"] = Repository(commits=[data_set(plain={"test": rows})])
    assert run(vision, tmp_path / "out", "--dataset", "org/images") == 3
    assert re.search(rf"the data has the class {wrong}, the model only 0 to 9", capsys.readouterr().err)


def test_a_connection_that_breaks(language, tmp_path, data_hub, capsys):
    """In the middle of a data file, whenever it is asked for: one line."""
    data_hub.repositories["datasets/org/corpus"] = Repository(commits=[data_set(small={"test": texts("abc")})])
    data_hub.failures.append(Failure("small/test", body=None, cut=20))
    assert run(language, tmp_path / "out", "--dataset", "org/corpus") == 6
    said = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(said) == 1
    assert said[0].startswith("error: the connection to the Hub failed for dataset org/corpus@main (")
    assert said[0].endswith("; try again later")
    assert not (tmp_path / "out").exists()
