"""Kinds of examples: blocks of tokens, labelled images, labelled texts, pairs of texts."""

from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Int
from jinja2 import TemplateError
from torch import Tensor
from torch.utils.data import Dataset
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from hf_moe_lmc.errors import BadInputError

if TYPE_CHECKING:
    from datasets import Dataset as Rows

LABELS = ("label", "labels", "fine_label")
TEXTS = ("text", "content", "messages", "conversations")


Text = str | list[dict[str, str]]
"""A text, or a conversation: messages with a role and a content."""


class Blocks(Dataset[dict[str, Tensor]]):
    """Blocks of S tokens; an item is `{"input_ids": [S], "labels": [S]}`, labels being the tokens themselves.

    Args:
        tokens: `[N, S]`.
    """

    def __init__(self, tokens: Int[Tensor, "N S"]):
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def packed_blocks(
    texts: Iterable[Text], tokenizer: PreTrainedTokenizerBase, block_size: int, max_blocks: int | None = None
) -> Blocks:
    """The tokens of all texts in a row, an end-of-text token after each, cut into blocks; the last, short one is left.

    Texts without tokens, such as the empty lines that WikiText has as rows, are passed over.

    Args:
        texts: strings, or conversations for the tokenizer's chat template; read only as far as needed.
        tokenizer: of the model.
        block_size: S.
        max_blocks: how many blocks at most.

    Raises:
        BadInputError: the texts do not fill one block, or the tokenizer has no chat template for conversations.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    tokens = array("q")  # a list would take five times as much for the tokens of WikiText-103
    for text in texts:
        if ids := tokenizer(as_text(text, tokenizer), add_special_tokens=False, verbose=False)["input_ids"]:
            tokens.extend([*ids, *end])
        if max_blocks is not None and len(tokens) >= max_blocks * block_size:
            break
    number = min(len(tokens) // block_size, max_blocks or len(tokens))
    if number == 0:
        raise BadInputError(
            f"the text has {len(tokens)} tokens, which do not fill one block of {block_size}; "
            "give more text or a smaller block"
        )
    return Blocks(torch.frombuffer(tokens, dtype=torch.int64)[: number * block_size].reshape(number, block_size))


def as_text(text: Text, tokenizer: PreTrainedTokenizerBase) -> str:
    """`text` itself; a conversation as the tokenizer's chat template has it.

    Raises:
        BadInputError: the tokenizer has no chat template, or it does not accept this conversation.
    """
    if isinstance(text, str):
        return text
    try:
        return cast(str, tokenizer.apply_chat_template(text, tokenize=False))
    except (ValueError, TypeError, KeyError, TemplateError) as error:
        reason = " ".join(str(error).split())
        raise BadInputError(
            f"the data holds conversations, which the tokenizer's chat template does not accept: {reason}; give "
            "messages with a role and a content, or another column of text"
        ) from error


class _Rows(Dataset[dict[str, Tensor]]):
    """As many items as rows."""

    def __init__(self, rows: "Rows"):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)


class LabelledImages(_Rows):
    """An item is `{"pixel_values": [C, height, width], "labels": class}`.

    Args:
        rows: with a column of images and one of classes.
        processor: the checkpoint's.
        channels: 1 or 3, of the model.

    Raises:
        BadInputError: a column is missing.
    """

    def __init__(self, rows: "Rows", processor: BaseImageProcessor, channels: int):
        super().__init__(rows)
        self._processor, self._mode = processor, {1: "L", 3: "RGB"}[channels]
        self._image, self._label = column(rows, ("image", "img")), column(rows, LABELS)

    @property
    def labels(self) -> list[int]:
        """The classes of all examples."""
        return self._rows[self._label][:]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self._rows[index]
        pixels = self._processor(row[self._image].convert(self._mode), return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": torch.tensor(row[self._label])}


class LabelledTexts(_Rows):
    """An item is `{"input_ids": [S], "attention_mask": [S], "labels": class}`, padded to S or cut there.

    Args:
        rows: with a column of texts and one of classes.
        tokenizer: the checkpoint's; needs a padding token.
        length: S.
        text_column: of the texts, or of the sources; None looks for the usual names.

    Raises:
        BadInputError: a column is missing.
    """

    def __init__(self, rows: "Rows", tokenizer: PreTrainedTokenizerBase, length: int, text_column: str | None = None):
        super().__init__(rows)
        self._tokenizer, self._length = tokenizer, length
        self._text, self._label = column(rows, ("text", "sentence"), text_column), column(rows, LABELS)

    @property
    def labels(self) -> list[int]:
        """The classes of all examples."""
        return self._rows[self._label][:]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self._rows[index]
        return _tokens(self._tokenizer, row[self._text], self._length) | {"labels": torch.tensor(row[self._label])}


class TextPairs(_Rows):
    """An item is `{"input_ids": [S], "attention_mask": [S], "labels": [S]}` for an encoder-decoder; padding is -100.

    Args:
        rows: with a column of sources and one of targets.
        tokenizer: the checkpoint's; needs a padding token.
        length: S.
        text_column: of the texts, or of the sources; None looks for the usual names.

    Raises:
        BadInputError: a column is missing.
    """

    def __init__(self, rows: "Rows", tokenizer: PreTrainedTokenizerBase, length: int, text_column: str | None = None):
        super().__init__(rows)
        self._tokenizer, self._length = tokenizer, length
        self._source = column(rows, ("source", "text", "document", "article"), text_column)
        self._target = column(rows, ("target", "summary", "highlights"))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self._rows[index]
        target = _tokens(self._tokenizer, row[self._target], self._length)
        labels = target["input_ids"].masked_fill(target["attention_mask"] == 0, -100)
        return _tokens(self._tokenizer, row[self._source], self._length) | {"labels": labels}


Examples = Blocks | LabelledImages | LabelledTexts | TextPairs


def column(rows: "Rows", usual: Sequence[str], named: str | None = None) -> str:
    """The column that is `named`, or else the first of the `usual` ones that `rows` has.

    Raises:
        BadInputError: there is none.
    """
    names = [named] if named else usual
    for name in names:
        if name in rows.column_names:
            return name
    raise BadInputError(
        f"the data has the columns {', '.join(rows.column_names)}, not {' or '.join(names)}; name the column of the "
        "text with --text-column (text_column in Python), or rename it"
    )


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> dict[str, Tensor]:
    encoded: Any = tokenizer(text, truncation=True, padding="max_length", max_length=length, return_tensors="pt")
    return {name: encoded[name][0] for name in ("input_ids", "attention_mask")}
