"""Texts -> blocks of tokens of equal length."""

from array import array
from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from hf_moe_lmc.errors import BadInputError


class Blocks(Dataset[dict[str, Tensor]]):
    """Blocks of S tokens; an item is `{"input_ids": [S], "labels": [S]}`, labels being the tokens themselves.

    Args:
        tokens: `[N, S]`.
    """

    def __init__(self, tokens: Int[Tensor, "N S"]):
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._tokens[index], "labels": self._tokens[index]}


def packed_blocks(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, block_size: int, max_blocks: int | None = None
) -> Blocks:
    """The tokens of all texts in a row, an end-of-text token after each, cut into blocks; the last, short one is left.

    Texts without tokens, such as the empty lines that WikiText has as rows, are passed over.

    Args:
        texts: read only as far as needed.
        tokenizer: of the model.
        block_size: S.
        max_blocks: how many blocks at most.

    Raises:
        BadInputError: the texts do not fill one block.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    tokens = array("q")  # a list would take five times as much for the tokens of WikiText-103
    for text in texts:
        if found := tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]:
            tokens.extend([*found, *end])
        if max_blocks is not None and len(tokens) >= max_blocks * block_size:
            break
    number = min(len(tokens) // block_size, max_blocks or len(tokens))
    if number == 0:
        raise BadInputError(
            f"the text has {len(tokens)} tokens, which do not fill one block of {block_size}; "
            "give more text or a smaller block"
        )
    return Blocks(torch.frombuffer(tokens, dtype=torch.int64)[: number * block_size].reshape(number, block_size))
