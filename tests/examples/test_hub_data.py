"""The examples' flags for data sets on a Hub."""

import finetune_vit_moe
from example_data import TextArguments
from example_parser import ExampleParser
from transformers import AutoModelForImageClassification

from tests.hub.data_sets import data_set, images, texts
from tests.hub.server import Repository


def test_images_with_a_class_that_is_rare(data_hub, tmp_path):
    """At a pinned revision, where the training split lacks one of the classes."""
    train = images(40, seed=1, label=10).filter(lambda row: row["label"] != 3)
    first = data_set(plain_text={"train": train, "validation": images(20, seed=2, label=10)})
    repository = Repository(commits=[first, data_set(plain_text={"train": images(4, seed=3, label=2)})])
    data_hub.repositories["datasets/org/cifar10"] = repository
    data = ["--dataset", "org/cifar10", "--dataset_config", "plain_text", "--test_split", "validation"]
    experts = ["--num_experts", "2", "--moe_intermediate_size", "8", "--seeds", "1"]
    quiet = ["--report_to", "none", "--disable_tqdm", "True", "--max_steps", "1", "--output_dir", str(tmp_path / "vit")]
    finetune_vit_moe.main([*data, "--dataset_revision", repository.shas[0], *experts, *quiet])
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "vit/seed-1").config.num_labels == 10


def test_texts(data_hub):
    """The flags that all scripts for language models share."""
    first, last = (data_set(small={"validation": texts(text)}) for text in ("a b c", "d e f"))
    repository = data_hub.repositories["datasets/org/corpus"] = Repository(commits=[first, last])
    flags = ["--dataset", "org/corpus", "--dataset_config", "small", "--dataset_split", "validation"]
    parser = ExampleParser(TextArguments, description=None)
    (asked,) = parser.parse_args_into_dataclasses([*flags, "--dataset_revision", repository.shas[0]])
    assert asked.texts() == ["a b c"]
    (asked,) = parser.parse_args_into_dataclasses(flags)
    assert asked.texts() == ["d e f"]
