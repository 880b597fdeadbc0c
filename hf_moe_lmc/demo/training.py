"""A plain training loop on Accelerate."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator
from huggingface_hub.utils import tqdm
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

Model = TypeVar("Model", bound=PreTrainedModel)


def train(
    model: Model,
    dataset: Dataset,
    parameter_groups: list[dict[str, object]],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    accelerator: Accelerator,
    description: str,
) -> Model:
    """Train `model` in place, and return it: AdamW (0.9, 0.98), 10 % linear warm-up, cosine decay to zero.

    The same seed gives the same weights, bit for bit, on one machine.

    Args:
        model: answers a batch with a `loss`.
        dataset: items are dicts of the model's arguments.
        parameter_groups: as `torch.optim.AdamW` takes them, learning rates and weight decays included.
        epochs, batch_size: how long.
        seed: of the order of the examples.
        accelerator: where.
        description: stands before the progress bar.
    """
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, generator=order)
    optimizer = torch.optim.AdamW(parameter_groups, betas=(0.9, 0.98))
    steps = epochs * len(loader)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=steps // 10, num_training_steps=steps)
    prepared, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    prepared.train()
    with sums_in_fixed_order(), tqdm(total=steps, desc=description, unit="step", leave=False) as bar:
        for _ in range(epochs):
            for batch in loader:
                loss = prepared(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                bar.update()
    accelerator.free_memory()
    return model


@contextmanager
def sums_in_fixed_order() -> Iterator[None]:
    """Within, gradients of gathered tokens are summed in a fixed order; by default their order is left to chance."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
