"""Pairs of tiny language models, fine-tuned for real on the manual that ships with Python, character by character."""

from copy import deepcopy
from functools import cache
from pydoc_data.topics import topics

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from hf_moe_lmc.connectivity.data.language_modeling import Blocks
from tests import families

FAMILIES = ("mixtral", "qwen2_moe", "olmoe", "deepseek_v3")
BLOCK, BATCH, EXPERTS = 32, 16, 6


@cache
def manual(block: int = BLOCK) -> torch.Tensor:
    """The manual in blocks of characters, `[N, block]`."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    tokens = torch.tensor([1 if c == "\n" else ord(c) - 30 for c in text if c == "\n" or 32 <= ord(c) < 127])
    return tokens[: len(tokens) // block * block].reshape(-1, block)


def held_out(start: int, number: int) -> Blocks:
    """`number` blocks of the last tenth of the manual, which no model was trained on."""
    return Blocks(manual()[-len(manual()) // 10 :][start : start + number])


def loader(start: int, number: int, batch_size: int = 8) -> DataLoader:
    """`held_out`, in order."""
    return DataLoader(held_out(start, number), batch_size=batch_size)


def train(model: PreTrainedModel, steps: int, seed: int, lr: float) -> PreTrainedModel:
    generator, data = torch.Generator().manual_seed(seed), manual()[: -len(manual()) // 10]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for _ in range(steps):
        batch = data[torch.randint(len(data), (BATCH,), generator=generator)]
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@cache
def pair(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Two fine-tunes of one pretrained model of `family`; callers give back what they change."""
    torch.manual_seed(0)
    model = families.FAMILIES[family].model_class()(families.configuration(family, EXPERTS))
    model.set_experts_implementation("eager")
    base = train(model, steps=80, seed=0, lr=1e-2)
    first, second = (train(deepcopy(base), steps=10, seed=seed, lr=3e-3) for seed in (1, 2))
    return first, second
