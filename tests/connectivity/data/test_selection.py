"""Which examples come first; what they are made of: test_examples."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_moe_lmc.connectivity.data import examples_for, selection, split_calibration
from hf_moe_lmc.connectivity.data.selection import stratified_order
from hf_moe_lmc.errors import BadInputError
from tests.connectivity.data.test_examples import words
from tests.models import build


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 5))
def test_every_beginning_holds_every_label_in_its_share(labels, seed):
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    labels = np.array(labels)
    for label in set(labels):
        counts = np.cumsum(labels[order] == label)
        fair = np.arange(1, len(labels) + 1) * (labels == label).mean()
        assert np.abs(counts - fair).max() <= 1 + len(set(labels)) / 2


def test_the_order_is_drawn():
    labels = [0] * 50 + [1] * 50
    first, again, second = (stratified_order(labels, seed) for seed in (0, 0, 1))
    assert first == again != second
    assert first != sorted(first)


def sorted_images(*sizes: int) -> Dataset:
    """As a folder of images gives them: class by class; every image is of a shade of its own."""
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    pictures = [Picture.fromarray(np.full((8, 8), shade, np.uint8)) for shade in range(len(labels))]
    features = Features({"image": Image(), "label": ClassLabel(num_classes=max(len(sizes), 2))})
    return Dataset.from_dict({"image": pictures, "label": labels}, features=features)


def images(rows: Dataset, **options):
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.0], image_std=[1.0])
    return examples_for(build("moe_vit sparse"), rows, processor, **options)


def test_fewer_examples_are_the_first_of_more():
    """So that a merge is calibrated on what `evaluate` set apart, however many examples that evaluated."""
    rows = sorted_images(40, 20, 20, 10, 10)
    few, more, every = (images(rows, max_examples=number) for number in (10, 30, None))
    assert sorted(few.labels) == [0, 0, 0, 0, 1, 1, 2, 2, 3, 4]
    assert few.labels == more.labels[:10] == every.labels[:10]
    assert len(every) == 100
    assert all((few[i]["pixel_values"] == every[i]["pixel_values"]).all() for i in range(10))
    assert images(rows, max_examples=10, seed=1).labels != few.labels


def test_blocks_are_drawn_from_the_whole_text():
    rows = Dataset.from_dict({"text": [" ".join(chr(97 + i % 26) for i in range(k, k + 9)) for k in range(20)]})
    model = build("mixtral")
    every = examples_for(model, rows, words(), length=10)
    few = examples_for(model, rows, words(), length=10, max_examples=5)
    assert few.tokens.tolist() == every.tokens[:5].tolist()
    first = [tokens[0] - 3 for tokens in every.tokens.tolist()]  # tells which text it was
    assert sorted(first) == list(range(20))
    assert max(first[:5]) > 9


def test_of_a_long_text_only_the_pool_is_read(monkeypatch):
    """The blocks after it follow in their order."""
    monkeypatch.setattr(selection, "POOL_TOKENS", 8)
    rows = Dataset.from_dict({"text": [chr(97 + i) for i in range(20)]})
    blocks = [tokens[0] - 3 for tokens in examples_for(build("mixtral"), rows, words(), length=2).tokens.tolist()]
    assert sorted(blocks[:4]) == [0, 1, 2, 3] != blocks[:4]
    assert blocks[4:] == list(range(4, 20))


def test_missing_classes_are_named(caplog):
    examples = images(sorted_images(20, 20, 20, 20, 1))
    assert not caplog.messages
    split_calibration(examples, 8)
    assert caplog.messages == ["the 8 examples to calibrate on hold none of 1 of 5 classes (4)"]
    images(sorted_images(3, 0, 4))
    assert caplog.messages[1:] == ["the 7 examples hold none of 3 of 5 classes (1, 3, 4)"]


def test_what_is_set_apart_is_not_evaluated():
    examples = images(sorted_images(10, 10, 10, 10, 10))
    calibration, rest = split_calibration(examples, 10)
    shades = [
        {round(255 * float(part[i]["pixel_values"].max())) for i in range(len(part))} for part in (calibration, rest)
    ]
    assert [len(part) for part in shades] == [10, 40]
    assert not shades[0] & shades[1]


@pytest.mark.parametrize("number", [0, 1, 9, 10, 11])
def test_too_few_on_either_side(number):
    examples = images(sorted_images(2, 2, 2, 2, 2))
    with pytest.raises(BadInputError, match=f"{number} of 10 examples are set apart for calibration; 2 are needed"):
        split_calibration(examples, number)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, "examples of length 1 hold nothing to predict; give 2 or more"),
        ({"length": -5}, "examples of length -5 hold nothing to predict"),
        ({"max_examples": 0}, "0 examples cannot be evaluated on; give one or more"),
    ],
)
def test_no_example_at_all(options, message):
    rows = Dataset.from_dict({"text": ["a b c d e f g h"]})
    with pytest.raises(BadInputError, match=message):
        examples_for(build("mixtral"), rows, words(), **options)
