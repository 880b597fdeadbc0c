"""Trained backbones and copies, kept on disk: what is there is not trained again."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from torch.utils.data import Dataset, Subset
from transformers import PreTrainedModel, set_seed

from hf_moe_lmc.demo.training import train

from . import cifar
from .cells import Cell, Endpoint
from .data import Data, joined
from .families import fresh_backbone, make_copy, replaced_parameters
from .smollm2 import load_smollm2

BACKBONE_SEED = 0
CPU_SECONDS = "cpu_seconds"


@dataclass(frozen=True)
class Trained:
    """A model, and the CPU seconds that its own training took, whenever that was."""

    model: PreTrainedModel
    cpu_seconds: float


def trained_copy(
    cell: Cell, endpoint: Endpoint, backbone: PreTrainedModel, sources: dict[str, Data], file: Path
) -> Trained:
    """The copy of `endpoint`, trained from `backbone` now unless `file` holds it."""
    set_seed(endpoint.seed)
    model = make_copy(cell, backbone)

    def fine_tune() -> None:
        moe = replaced_parameters(cell, model)
        members = {id(parameter) for parameter in moe}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in members]
        for parameter in rest:
            parameter.requires_grad_(cell.backbone == "trainable")
        groups = [(moe, cell.moe_lr), (rest if cell.backbone == "trainable" else [], cell.lr)]
        _train(
            model,
            _drawn(sources[endpoint.source].train, cell.steps * cell.batch, endpoint.seed),
            [{"params": some, "lr": lr, "weight_decay": cell.weight_decay} for some, lr in groups if some],
            cell,
            f"{cell.name}, {endpoint}",
        )

    return _kept(file, model, fine_tune)


def trained_backbone(cell: Cell, sources: dict[str, Data], kept: Path) -> Trained:
    """The one model that all copies start from."""
    if cell.model == "smollm2":
        return Trained(load_smollm2(), 0.0)
    if cell.data == "cifar10":
        return Trained(*cifar.pretrained())
    sizes = next(iter(sources.values())).sizes
    set_seed(BACKBONE_SEED)
    model = fresh_backbone(cell, sizes)

    def pretrain() -> None:
        group = {"params": list(model.parameters()), "lr": cell.pretrain_lr, "weight_decay": cell.pretrain_decay}
        examples = _drawn(joined(sources), cell.pretrain_steps * cell.batch, BACKBONE_SEED)
        _train(model, examples, [group], cell, f"{cell.name}, backbone")

    return _kept(kept / f"backbone-{cell.backbone_key}.safetensors", model, pretrain)


def _train(model: PreTrainedModel, examples: Dataset, groups: list[dict[str, object]], cell: Cell, what: str) -> None:
    options = {"epochs": 1, "batch_size": cell.batch, "seed": BACKBONE_SEED, "description": what}
    train(model, examples, groups, accelerator=Accelerator(), **options)


def _drawn(dataset: Dataset, number: int, seed: int) -> Subset:
    """`number` examples: the whole set in a drawn order, again and again."""
    generator, order = torch.Generator().manual_seed(seed), []
    while len(order) < number:
        order += torch.randperm(len(dataset), generator=generator).tolist()
    return Subset(dataset, order[:number])


def _kept(file: Path, model: PreTrainedModel, train_now: Callable[[], None]) -> Trained:
    """`model` with the weights in `file`, or else trained and saved there."""
    if not file.exists():
        started = time.process_time()
        train_now()
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        save_model(model, str(partial), metadata={CPU_SECONDS: f"{time.process_time() - started:.1f}"})
        os.replace(partial, file)
    load_model(model, file)
    with safe_open(file, "pt") as opened:
        return Trained(model.eval(), float(opened.metadata()[CPU_SECONDS]))
