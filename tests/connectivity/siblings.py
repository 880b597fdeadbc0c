"""Pairs of siblings: one random model and two small steps away from it, with data that the model itself has labelled.

Nothing is trained: the model is right about most of its data because the data says what it says.
"""

from copy import deepcopy
from functools import cache

import torch
from torch.utils.data import DataLoader, StackDataset, Subset
from transformers import PreTrainedModel

from tests import families
from tests.models import draw_weights, moe_gpt2, moe_vit

IMAGES = "moe_vit"
FAMILIES = ("mixtral", "qwen2_moe", "olmoe", "deepseek_v3", "moe_gpt2", IMAGES)
BLOCK, EXAMPLES, EXPERTS, HIDDEN = 32, 64, 6, 32
STEP = 0.02  # of the standard deviation of a tensor
PAPER = {"moe_layers": [0, 1], "moe_intermediate_size": 48}


def build(family: str) -> PreTrainedModel:
    """A tiny random model, weights of order 1."""
    if family == IMAGES:
        model = moe_vit("shared", image_size=28, patch_size=7, num_labels=10, hidden_size=HIDDEN, **PAPER)
    elif family == "moe_gpt2":
        model = moe_gpt2("shared", vocab_size=families.VOCABULARY, n_positions=BLOCK, n_embd=HIDDEN, **PAPER)
    else:
        return families.build(family, experts=EXPERTS)
    return draw_weights(model)


def stepped(model: PreTrainedModel, seed: int, step: float = STEP) -> PreTrainedModel:
    """A copy with noise on every weight."""
    generator = torch.Generator().manual_seed(seed)
    model = deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += (step * parameter.std(correction=0) * noise).to(parameter)
    return model


@cache
def base(family: str) -> PreTrainedModel:
    return build(family)


@cache
def pair(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Two siblings of `family`; callers give back what they change."""
    return stepped(base(family), 1), stepped(base(family), 2)


@cache
@torch.no_grad()
def examples(family: str) -> StackDataset:
    """Random inputs, labelled by the parent of the pair: the token, or the class, that it holds the likeliest."""
    generator = torch.Generator().manual_seed(3)
    if family == IMAGES:
        pixels = torch.randn(EXAMPLES, 1, 28, 28, generator=generator)
        return StackDataset(pixel_values=pixels, labels=base(family)(pixel_values=pixels).logits.argmax(-1))
    tokens = torch.randint(3, families.VOCABULARY, (EXAMPLES, BLOCK), generator=generator)
    likeliest = base(family)(input_ids=tokens, use_cache=False).logits.argmax(-1)
    return StackDataset(input_ids=tokens, labels=torch.cat([tokens[:, :1], likeliest[:, :-1]], dim=1))


def held_out(start: int, number: int, family: str = "mixtral") -> Subset:
    """`number` of the examples."""
    return Subset(examples(family), range(start, start + number))


def loader(start: int, number: int, batch_size: int = 8, family: str = "mixtral") -> DataLoader:
    """`held_out`, in order."""
    return DataLoader(held_out(start, number, family), batch_size=batch_size)
