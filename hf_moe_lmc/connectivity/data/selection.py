"""Rows -> the examples that a model is evaluated and calibrated on."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from transformers import AutoTokenizer, BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

# Transformers 5.17 exports a stand-in that asks for torchvision, which processors of PIL do not need.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_moe_lmc.errors import BadInputError

from .examples import LABELS, TEXTS, Examples, LabelledImages, LabelledTexts, TextPairs, column, packed_blocks

if TYPE_CHECKING:
    from datasets import Dataset as Rows

Processor = PreTrainedTokenizerBase | BaseImageProcessor


def processor_of(model: PreTrainedModel, checkpoint: str | Path) -> Processor:
    """The image processor or the tokenizer of `checkpoint`, whichever `model` needs.

    Raises:
        BadInputError: the checkpoint has none.
    """
    images = model.main_input_name == "pixel_values"
    try:
        return cast(Processor, (AutoImageProcessor if images else AutoTokenizer).from_pretrained(checkpoint))
    except (OSError, ValueError, KeyError, ImportError) as error:
        what, reason = "image processor" if images else "tokenizer", " ".join(str(error).split())
        raise BadInputError(f"{checkpoint} has no {what} that loads: {reason}") from error


def examples_for(
    model: PreTrainedModel, rows: "Rows", processor: Processor, *, length: int = 512, max_examples: int | None = None
) -> Examples:
    """Examples for `model` out of `rows`.

    Images with their class for an image classifier; texts with their class for a sequence classifier; sources with
    their targets for an encoder-decoder; blocks of tokens for a causal language model.

    Args:
        model: says what it is.
        rows: with the columns `image` and `label`, `text` and `label`, `source` and `target`, or `text`.
        processor: the checkpoint's tokenizer or image processor.
        length: tokens of a block or a sequence.
        max_examples: the first so many.

    Raises:
        BadInputError: a column is missing, there is too little data, a class is none of the model's, or `model` is of
            another kind.
    """
    causal = model.can_generate() and not model.config.is_encoder_decoder
    if max_examples is not None and not causal:
        rows = cast("Rows", rows.select(range(min(max_examples, len(rows)))))
    if isinstance(processor, BaseImageProcessor):
        _check_classes(rows, model)
        return LabelledImages(rows, processor, getattr(model.config, "num_channels", 3))
    if causal:
        return packed_blocks(iter(rows[column(rows, TEXTS)]), processor, length, max_examples)
    if model.config.is_encoder_decoder:
        return TextPairs(rows, processor, length)
    if type(model).__name__.endswith("ForSequenceClassification"):
        _check_classes(rows, model)
        return LabelledTexts(rows, processor, length)
    raise BadInputError(f"no examples are made for a {type(model).__name__}; give `evaluate_path` batches with labels")


def _check_classes(rows: "Rows", model: PreTrainedModel) -> None:
    classes = range(cast(int, model.config.num_labels))
    for label in rows[column(rows, LABELS)][:]:
        if label not in classes:
            raise BadInputError(
                f"the data has the class {label}, the model only 0 to {classes[-1]}; give the data that it was trained "
                "for, and a split with labels (often they are -1 in the test split)"
            )
