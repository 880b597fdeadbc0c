"""Breaks a checkpoint in three ways that load and run like any other, and finds out which.

A small Mixtral is saved, and a copy of it as three accidents leave it: one layer whose router rows were sorted without
their experts, one whose gate and up were exchanged by a conversion, and one whose last expert was never written. Half a
minute on a CPU.

    python examples/compare_checkpoints.py --output_dir compared
    hf-moe-lmc compare compared/intact compared/broken --table

With two folders or repositories of the Hub it says what became of the second:

    python examples/compare_checkpoints.py --models org/a org/b --output_dir compared
"""

import copy
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from example_parser import ExampleParser
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel, set_seed

from hf_moe_lmc import compare
from hf_moe_lmc.comparison import plot_comparison


@dataclass
class CompareArguments:
    """The models, and where the plot goes."""

    output_dir: str = field(metadata={"help": "folder for the plot, and for the models if none are given"})
    models: list[str] | None = field(
        default=None, metadata={"help": "two folders or repositories on the Hub; default: a model, and broken"}
    )


def intact_model() -> PreTrainedModel:
    """Four layers of eight experts, with random weights."""
    config = MixtralConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
    )
    return MixtralForCausalLM(config)


@torch.no_grad()
def broken_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The model after three accidents."""
    broken = copy.deepcopy(model)
    sorted_alone, exchanged, unwritten = (layer.mlp for layer in broken.model.layers[1:])
    rows = sorted_alone.gate.weight
    rows.copy_(rows[rows.norm(dim=1).argsort()].clone())
    gate, up = exchanged.experts.gate_up_proj.clone().chunk(2, dim=1)
    exchanged.experts.gate_up_proj.copy_(torch.cat([up, gate], dim=1))
    for tensor in (unwritten.experts.gate_up_proj, unwritten.experts.down_proj):
        tensor[-1].normal_(std=0.02)
    return broken


def main(arguments: CompareArguments) -> None:
    """Compare two models, in words and as a plot."""
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    models = arguments.models
    if models is None:
        set_seed(0)
        model = intact_model()
        models = [str(folder / "intact"), str(folder / "broken")]
        for name, one in zip(models, (model, broken_copy(model)), strict=True):
            one.save_pretrained(name)
    comparison = compare(*models)
    plot_comparison(comparison, folder / "comparison.png")
    sys.stdout.write(comparison.summary())


if __name__ == "__main__":
    parser = ExampleParser(CompareArguments, description=__doc__)
    main(*parser.parse_args_into_dataclasses())
