"""A frozen backbone, cut in front of the first replaced layer: what comes before that is computed once.

What is left is a model of the same class with fewer layers, whose inputs are the hidden states there.

    python -m benchmarks.paper.frozen smollm2/place=30    # loss of the backbone, with and without the FFN of that layer
"""

import argparse
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaForCausalLM, PreTrainedModel, ViTForImageClassification

from hf_moe_lmc.connectivity import evaluate

from . import cifar
from .cells import Cell
from .data import Data, load, spread
from .endpoints import trained_backbone
from .grid import GRID, load_grid

EPOCHS = 2  # of the copies; so many times fewer examples have to pass the layers in front
Frozen = ViTForImageClassification | LlamaForCausalLM


class Examples(Dataset[dict[str, Tensor]]):
    """Rows of tensors, by name."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self.tensors.items()}


def cut(cell: Cell, backbone: Frozen, sources: Mapping[str, Data]) -> tuple[Cell, Frozen, dict[str, Data]]:
    """The same cell, the layers of its backbone from the first replaced one on, and its data as hidden states there."""
    first = cell.layers[0]
    front = deepcopy(backbone.base_model).to(Accelerator().device)
    front.layers = front.layers[:first]
    front.config.num_hidden_layers = first
    setattr(front, "layernorm" if isinstance(backbone, ViTForImageClassification) else "norm", nn.Identity())
    rear = deepcopy(backbone)
    rear.base_model.layers = rear.base_model.layers[first:]
    rear.config.num_hidden_layers = cell.depth - first
    if isinstance(rear, ViTForImageClassification):
        rear.vit.embeddings.forward = _given  # a language model takes `inputs_embeds` anyway
    wanted = cell.steps * cell.batch // EPOCHS
    moved = {
        name: replace(
            data,
            train=Examples(_joined(_hidden(front, DataLoader(spread(data.train, wanted), batch_size=64)))),
            calibration=_hidden(front, data.calibration),
            test=_hidden(front, data.test),
        )
        for name, data in sources.items()
    }
    place = "all" if len(cell.layers) > 1 else "first"
    return replace(cell, depth=cell.depth - first, place=place), rear, moved


def _given(pixel_values: Tensor, **_: Any) -> Tensor:
    return pixel_values


@torch.no_grad()
def _hidden(front: PreTrainedModel, batches: Any) -> tuple[dict[str, Tensor], ...]:
    """The batches with the hidden states behind `front`."""
    moved = []
    for batch in batches:
        given = send_to_device(batch, front.device)
        if "pixel_values" in batch:
            states = {"pixel_values": front(given["pixel_values"]).last_hidden_state.cpu()}
        else:
            states = {"inputs_embeds": front(given["input_ids"], use_cache=False).last_hidden_state.cpu()}
        moved.append(states | {"labels": batch["labels"]})
    return tuple(moved)


def _joined(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def main() -> None:
    """Print what a layer is worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", help="a name of scale.yaml")
    parser.add_argument("--cifar10", default=cifar.HUB_ID, help="a folder of its parquet files, or its id on the Hub")
    options = parser.parse_args()
    (cell,) = (c for t in load_grid(GRID.with_name("scale.yaml")) for c in t.cells if c.name == options.cell)
    sources = load(cell.data, cell.model, options.cifar10)
    backbone = trained_backbone(cell, sources, Path()).model
    _, rear, moved = cut(replace(cell, steps=EPOCHS, batch=1), backbone, sources)
    for kind in ("whole", "without the FFN"):
        for source, data in moved.items():
            evaluation = evaluate(rear, data.test, Accelerator())
            print(f"{source}, {kind}: {evaluation.loss:.4f} nats, accuracy {evaluation.accuracy:.4f}")  # noqa: T201
        rear.base_model.layers[0].mlp.register_forward_hook(lambda *_: 0.0)


if __name__ == "__main__":
    main()
