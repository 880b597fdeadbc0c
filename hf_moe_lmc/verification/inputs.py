"""The models to compare, loaded alike, and the inputs to compare them on."""

import inspect
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_moe_lmc.alignment import load_model, open_model
from hf_moe_lmc.errors import BadInputError

BATCHES, BATCH, LENGTH = 4, 4, 64

SAMPLE_TEXT = """\
The router of a mixture of experts sends every token to a few of many feed-forward networks. Which network bears which
number is an accident of training: exchange two experts together with their rows in the router, and nothing changes.
In 1905, Albert Einstein published four papers; the fourth contained E = mc^2. "Why?" she asked. "Because 7 * 8 = 56."

def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

Der Wind hat sich gedreht, und am Abend begann es zu regnen. El tren sale a las ocho y media de la mañana.
今天天气很好。
SELECT name, COUNT(*) FROM visits WHERE year >= 2020 GROUP BY name ORDER BY 2 DESC; <p class="note">Done.</p>
"""
"""A text of many kinds: prose, numbers, code, several languages."""


def load_plainly(name: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a folder or of a repository on the Hub, with "eager" attention and experts.

    Its checkpoint is checked first, as for an alignment; its tokenizer lies in `name_or_path`.

    Raises:
        BadInputError: the checkpoint is damaged or incomplete.
        UnsupportedArchitectureError: it is not known here.
        HubError: the Hub does not give it.
    """
    model = load_model(open_model(name), {"dtype": dtype, "attn_implementation": "eager"})
    model.set_experts_implementation("eager")  # the others reject float64 on a CPU
    return model


def random_batches(model: nn.Module, seed: int = 0) -> list[dict[str, Tensor]]:
    """Uniformly random tokens, none of them special, or standard normal pixels, for any model that takes either.

    Four batches of four sequences of 64 tokens (or of as many positions as there are), or of four images.

    Raises:
        BadInputError: the model takes something else.
    """
    if not isinstance(model, PreTrainedModel):
        raise BadInputError(f"a {type(model).__name__} is no model of Transformers, no inputs are known; give batches")
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
    text = config.get_text_config()
    tokens = getattr(text, "vocab_size", None)
    if model.main_input_name != "input_ids" or tokens is None:
        raise BadInputError(
            f"no inputs are known for a {type(model).__name__}, which takes {model.main_input_name}; give batches"
        )
    special = {value for fields in (config, text) for name, value in vars(fields).items() if name.endswith("token_id")}
    ordinary = torch.tensor([token for token in range(tokens) if token not in special])
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
