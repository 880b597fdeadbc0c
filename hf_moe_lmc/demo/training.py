"""The models of the demo: one dense ViT, one fine-tuned Mixture-of-Experts copy of it per seed, and their training."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    get_cosine_schedule_with_warmup,
    set_seed,
)

from hf_moe_lmc.modeling import MoeViTForImageClassification
from hf_moe_lmc.progress import Progress

from .digits import CLASSES, IMAGE_SIZE, Shifted
from .recipe import Recipe

Model = TypeVar("Model", bound=PreTrainedModel)


def pretrain(folder: Path, recipe: Recipe, dataset: Dataset, accelerator: Accelerator) -> ViTForImageClassification:
    """The dense model in `folder`, trained now unless it exists."""

    def trained() -> ViTForImageClassification:
        set_seed(recipe.pretrain_seed)
        config = ViTConfig(
            hidden_size=recipe.hidden_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            intermediate_size=recipe.ffn_width,
            image_size=IMAGE_SIZE,
            patch_size=recipe.patch_size,
            num_channels=1,
            id2label={digit: str(digit) for digit in range(CLASSES)},
            initializer_range=recipe.hidden_size**-0.5,  # the default, 0.02, suits widths near 768
        )
        model = ViTForImageClassification(config)
        return train(
            model,
            Shifted(dataset, recipe.shift, recipe.pretrain_seed),
            [{"params": list(model.parameters()), "lr": recipe.pretrain_lr, "weight_decay": recipe.pretrain_decay}],
            epochs=recipe.pretrain_epochs,
            batch_size=recipe.batch_size,
            seed=recipe.pretrain_seed,
            accelerator=accelerator,
            description="pretraining",
        )

    return _kept(folder, ViTForImageClassification, trained)


def finetune(
    folder: Path,
    dense: ViTForImageClassification,
    seed: int,
    recipe: Recipe,
    dataset: Dataset,
    accelerator: Accelerator,
) -> MoeViTForImageClassification:
    """The copy of `dense` in `folder` with a Mixture of Experts as its first FFN, trained now unless it exists."""

    def trained() -> MoeViTForImageClassification:
        set_seed(seed)
        model = MoeViTForImageClassification.from_dense(
            dense,
            layers=[0],
            moe_variant=recipe.variant,
            num_experts=recipe.num_experts,
            num_experts_per_tok=recipe.experts_per_token,
            moe_intermediate_size=recipe.expert_width,
        )
        moe = list(model.get_submodule("vit.layers.0.mlp").parameters())
        members = {id(parameter) for parameter in moe}
        backbone = [parameter for parameter in model.parameters() if id(parameter) not in members]
        return train(
            model,
            Shifted(dataset, recipe.shift, seed),
            [
                {"params": moe, "lr": recipe.moe_lr, "weight_decay": recipe.weight_decay},
                {"params": backbone, "lr": recipe.backbone_lr, "weight_decay": recipe.weight_decay},
            ],
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            seed=seed,
            accelerator=accelerator,
            description=f"fine-tuning, seed {seed}",
        )

    return _kept(folder, MoeViTForImageClassification, trained)


def save_whole(model: PreTrainedModel, folder: Path) -> None:
    """Save `model` in `folder`, replacing what is there; a killed run leaves no half-written folder of that name."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(partial, folder)


def _kept(folder: Path, model_class: type[Model], make: Callable[[], Model]) -> Model:
    if not folder.exists():
        save_whole(make(), folder)
    # On a CPU and at this size, Transformers' "eager" loop over experts is the fastest of its implementations.
    return model_class.from_pretrained(folder, experts_implementation="eager")


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
        model: whose output for a batch has a `loss`.
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
    with sums_in_fixed_order(), Progress(total=steps, desc=description, unit="steps", leave=False) as bar:
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
