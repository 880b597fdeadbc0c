"""Rows -> the examples that a model is evaluated and calibrated on: a seeded sample with a share of every class."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, cast

import numpy as np
from torch import Tensor
from torch.utils.data import Subset
from transformers import AutoTokenizer, BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

# Transformers 5.17 exports a stand-in that asks for torchvision, which processors of PIL do not need.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import logging

from hf_moe_lmc.errors import BadInputError

from .examples import (
    LABELS,
    TEXTS,
    Blocks,
    Examples,
    LabelledImages,
    LabelledTexts,
    Text,
    TextPairs,
    column,
    packed_blocks,
)

if TYPE_CHECKING:
    from datasets import Dataset as Rows

Processor = PreTrainedTokenizerBase | BaseImageProcessor

POOL_TOKENS = 2**21  # a text is read that far before blocks are drawn; seconds of tokenizing
NAMED_CLASSES = 5
FEWEST = 2  # examples

logger = logging.get_logger(__name__)


def processor_of(model: PreTrainedModel, checkpoint: str | Path) -> Processor:
    """The image processor or the tokenizer of `checkpoint`, whichever `model` needs.

    Raises:
        BadInputError: the checkpoint has none.
    """
    images = model.main_input_name == "pixel_values"
    try:
        return cast(Processor, (AutoImageProcessor if images else AutoTokenizer).from_pretrained(checkpoint))
    except Exception as error:  # settings come from a file, and may break anything
        what, reason = "image processor" if images else "tokenizer", shorten(str(error), 120)
        raise BadInputError(f"{checkpoint} has no {what} that loads: {reason}; copy the files of one there") from error


def examples_for(
    model: PreTrainedModel,
    rows: "Rows",
    processor: Processor,
    *,
    length: int = 512,
    max_examples: int | None = None,
    text_column: str | None = None,
    seed: int = 0,
) -> Examples:
    """Examples for `model` out of `rows`, in an order of which every beginning is a random sample.

    Images with their class for an image classifier; texts with their class for a sequence classifier; sources with
    their targets for an encoder-decoder; blocks of tokens for a causal language model. A beginning holds every class in
    its share, to one example (`stratified_order`). Blocks are drawn from the first two million tokens of the text; once
    these are used up, the further ones follow as they come.

    The order depends on `rows` and `seed` alone, so that fewer examples are the first of more.

    Args:
        model: says what it is.
        rows: with the columns `image` and `label`, `text` and `label`, `source` and `target`, or `text`, which may be
            conversations (`messages`) for a causal language model.
        processor: the checkpoint's tokenizer or image processor.
        length: tokens of a block or a sequence.
        max_examples: the first so many; None for all.
        text_column: of the text; None looks for the usual names.
        seed: of the order.

    Raises:
        BadInputError: a column is missing, there is too little data, a class is none of the model's, `length` or
            `max_examples` is too small, or `model` is of another kind.
    """
    causal = model.can_generate() and not model.config.is_encoder_decoder
    shortest = 2 if causal else 1  # the first token of a block is not predicted
    if length < shortest:
        raise BadInputError(f"examples of length {length} hold nothing to predict; give {shortest} or more")
    if max_examples is not None and max_examples < 1:
        raise BadInputError(f"{max_examples} examples cannot be evaluated on; give one or more")
    if causal and not isinstance(processor, BaseImageProcessor):
        texts = iter(rows[column(rows, TEXTS, text_column)])
        return _drawn_blocks(texts, processor, length, max_examples, seed)
    classified = isinstance(processor, BaseImageProcessor) or type(model).__name__.endswith("ForSequenceClassification")
    if not classified and not model.config.is_encoder_decoder:
        name = type(model).__name__
        raise BadInputError(f"no examples are made for a {name}; give `evaluate_path` batches with labels")
    labels = _labels(rows, model) if classified else [0] * len(rows)
    order = stratified_order(labels, seed)[:max_examples]
    rows = cast("Rows", rows.select(order))
    if classified:
        _warn_of_missing({labels[i] for i in order}, _classes(model), f"the {len(order)} examples")
    if isinstance(processor, BaseImageProcessor):
        return LabelledImages(rows, processor, getattr(model.config, "num_channels", 3))
    return (TextPairs if model.config.is_encoder_decoder else LabelledTexts)(rows, processor, length, text_column)


def split_calibration(examples: Examples, number: int) -> "tuple[Subset[dict[str, Tensor]], Subset[dict[str, Tensor]]]":
    """The first `number` of `examples`, to calibrate on, and all others, to evaluate on.

    Args:
        examples: in the order of `examples_for`, so that both are random samples.
        number: at least 2: some calibrate, others choose.

    Raises:
        BadInputError: fewer than two examples are left for either.
    """
    if number < FEWEST or len(examples) - number < FEWEST:
        raise BadInputError(
            f"{number} of {len(examples)} examples are set apart for calibration; {FEWEST} are needed there, and "
            f"{FEWEST} others to evaluate on: give more data, shorter examples, or another number"
        )
    if isinstance(examples, LabelledImages | LabelledTexts):
        _warn_of_missing(examples.labels[:number], examples.labels, f"the {number} examples to calibrate on")
    return Subset(examples, range(number)), Subset(examples, range(number, len(examples)))


def stratified_order(labels: Sequence[int], seed: int) -> list[int]:
    """Positions of `labels` in a random order; every beginning holds each label in its share, to one.

    The r-th of the n positions of a label (in a random order) comes at (r + 1/2) / n of the whole.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    _, label, sizes = np.unique(np.asarray(labels)[shuffled], return_inverse=True, return_counts=True)
    by_label = np.argsort(label, kind="stable")
    rank = np.empty(len(shuffled))
    rank[by_label] = np.arange(len(shuffled)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return shuffled[np.argsort((rank + 0.5) / sizes[label], kind="stable")].tolist()


def _drawn_blocks(
    texts: Iterable[Text], tokenizer: PreTrainedTokenizerBase, length: int, number: int | None, seed: int
) -> Blocks:
    """`number` blocks of the text, those of its first `POOL_TOKENS` in a random order."""
    pool = max(POOL_TOKENS // length, 1)
    tokens = packed_blocks(texts, tokenizer, length, None if number is None else max(number, pool)).tokens
    drawn = np.random.default_rng(seed).permutation(min(pool, len(tokens)))
    tokens[: len(drawn)] = tokens[drawn]
    return Blocks(tokens[:number])


def _labels(rows: "Rows", model: PreTrainedModel) -> list[int]:
    """The classes of all rows, which must be classes of the model."""
    labels, classes = rows[column(rows, LABELS)][:], _classes(model)
    for label in labels:
        if label not in classes:
            raise BadInputError(
                f"the data has the class {label}, the model only 0 to {classes[-1]}; give the data that it was trained "
                "for, and a split with labels (often they are -1 in the test split)"
            )
    return labels


def _classes(model: PreTrainedModel) -> range:
    return range(cast(int, model.config.num_labels))


def _warn_of_missing(labels: Iterable[int], classes: Iterable[int], where: str) -> None:
    if missing := sorted(set(classes) - set(labels)):
        named = ", ".join(map(str, missing[:NAMED_CLASSES])) + (", ..." if len(missing) > NAMED_CLASSES else "")
        logger.warning_once(f"{where} hold none of {len(missing)} of {len(set(classes))} classes ({named})")
