"""Pairs of tiny models, fine-tuned for real on the manual that ships with Python, by character, or on digits."""

from copy import deepcopy
from functools import cache
from pydoc_data.topics import topics

import torch
from torch.utils.data import DataLoader, Dataset, Subset, default_collate
from transformers import PreTrainedModel

from hf_moe_lmc.connectivity.data import Blocks
from hf_moe_lmc.demo.digits import digits_file, load_digits
from tests import families
from tests.models import moe_gpt2, moe_vit

IMAGES = "moe_vit"
FAMILIES = ("mixtral", "qwen2_moe", "olmoe", "deepseek_v3", "moe_gpt2", IMAGES)
BLOCK, BATCH, EXPERTS, HIDDEN = 32, 16, 6, 32
PAPER = {"moe_layers": [0, 1], "moe_intermediate_size": 48, "initializer_range": HIDDEN**-0.5}


@cache
def manual(block: int = BLOCK) -> torch.Tensor:
    """The manual in blocks of characters, `[N, block]`."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    tokens = torch.tensor([1 if c == "\n" else ord(c) - 30 for c in text if c == "\n" or 32 <= ord(c) < 127])
    return tokens[: len(tokens) // block * block].reshape(-1, block)


@cache
def digits() -> tuple[Dataset, Dataset]:
    """Real handwritten digits, for training and apart from it."""
    return load_digits(digits_file())


def training(family: str) -> Dataset:
    """What the models of `family` are trained on."""
    return digits()[0] if family == IMAGES else Blocks(manual()[: -len(manual()) // 10])


def held_out(start: int, number: int, family: str = "mixtral") -> Dataset:
    """`number` digits, or blocks of the last tenth of the manual, which no model was trained on."""
    if family == IMAGES:
        return Subset(digits()[1], range(start, start + number))
    return Blocks(manual()[-len(manual()) // 10 :][start : start + number])


def loader(start: int, number: int, batch_size: int = 8, family: str = "mixtral") -> DataLoader:
    """`held_out`, in order."""
    return DataLoader(held_out(start, number, family), batch_size=batch_size)


def build(family: str) -> PreTrainedModel:
    """A tiny random model."""
    if family == IMAGES:
        return moe_vit("shared", image_size=28, patch_size=7, num_labels=10, hidden_size=HIDDEN, **PAPER)
    if family == "moe_gpt2":
        return moe_gpt2("shared", vocab_size=97, n_positions=BLOCK, n_embd=HIDDEN, **PAPER)
    return families.FAMILIES[family].model_class()(families.configuration(family, EXPERTS))


def train(model: PreTrainedModel, data: Dataset, steps: int, seed: int, lr: float) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    options = {"use_cache": False} if model.can_generate() else {}
    model.train()
    for _ in range(steps):
        drawn = torch.randint(len(data), (BATCH,), generator=generator).tolist()
        model(**default_collate([data[i] for i in drawn]), **options).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@cache
def pair(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Two fine-tunes of one pretrained model of `family`; callers give back what they change."""
    torch.manual_seed(0)
    model, data = build(family), training(family)
    model.set_experts_implementation("eager")
    steps, lr = (200, 3e-3) if family == IMAGES else (80, 1e-2)
    base = train(model, data, steps, seed=0, lr=lr)
    first, second = (train(deepcopy(base), data, steps=10, seed=seed, lr=3e-3) for seed in (1, 2))
    return first, second
