"""Inputs to compare two models on."""

import inspect

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_moe_lmc.errors import BadInputError

from .sample_text import SAMPLE_TEXT

BATCHES, BATCH, LENGTH = 4, 4, 64


def random_batches(model: PreTrainedModel, seed: int = 0) -> list[dict[str, Tensor]]:
    """Uniformly random tokens, none of them special, or standard normal pixels, for any model that takes either.

    Four batches of four sequences of 64 tokens (or of as many positions as there are), or of four images.

    Raises:
        BadInputError: the model takes something else.
    """
    generator, config = torch.Generator().manual_seed(seed), model.config
    if model.main_input_name == "pixel_values" and hasattr(config, "image_size"):
        height, width = _pair(config.image_size)
        shape = (BATCH, config.num_channels, height, width)
        # VitPose: else no expert is chosen.
        own = "dataset_index" in inspect.signature(model.forward).parameters
        chosen = {"dataset_index": torch.arange(BATCH, device=model.device) % config.num_experts} if own else {}
        return [
            {"pixel_values": torch.randn(shape, generator=generator).to(model.device, model.dtype)} | chosen
            for _ in range(BATCHES)
        ]
    if model.main_input_name != "input_ids":
        raise BadInputError(
            f"no inputs are known for a {type(model).__name__}, which takes {model.main_input_name}; give batches"
        )
    text = config.get_text_config()
    special = {value for fields in (config, text) for name, value in vars(fields).items() if name.endswith("token_id")}
    ordinary = torch.tensor([token for token in range(text.vocab_size) if token not in special])
    length = min(LENGTH, getattr(text, "max_position_embeddings", None) or LENGTH)
    drawn = torch.randint(len(ordinary), (BATCHES, BATCH, length), generator=generator)
    return [_token_batch(model, tokens) for tokens in ordinary[drawn]]


def text_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str = SAMPLE_TEXT
) -> dict[str, Tensor]:
    """The tokens of `text` in sequences of 64, or of as many positions as there are; a remainder is left out.

    Raises:
        BadInputError: there are no tokens, or the tokenizer has tokens that the model lacks.
    """
    config = model.config.get_text_config()
    tokens = torch.tensor(tokenizer(text)["input_ids"], dtype=torch.long)
    if len(tokens) == 0:
        raise BadInputError("the text is empty; give some words")
    if (highest := int(tokens.max())) >= config.vocab_size:
        raise BadInputError(f"the tokenizer gives token {highest}, but the model's vocabulary is {config.vocab_size}")
    length = min(LENGTH, getattr(config, "max_position_embeddings", None) or LENGTH, len(tokens))
    return _token_batch(model, tokens[: len(tokens) // length * length].reshape(-1, length))


def _token_batch(model: PreTrainedModel, tokens: Tensor) -> dict[str, Tensor]:
    tokens = tokens.to(model.device)
    batch = {"input_ids": tokens}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = tokens
    if "moe_mm_token_type_ids" in inspect.signature(model.forward).parameters:  # Ernie: else the vision experts idle
        batch["moe_mm_token_type_ids"] = tokens % 2
    return batch


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
