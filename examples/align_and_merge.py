"""Aligns two Mixture-of-Experts checkpoints, merges them at several points, and measures the path between them.

    python examples/align_and_merge.py vit-moe/seed-1 vit-moe/seed-2 --output vit-merged
    python examples/align_and_merge.py copy-1 copy-2 --dataset book.txt --block_size 64 --output merged
    python examples/align_and_merge.py org/a@v1 org/b --dataset Salesforce/wikitext --dataset_config wikitext-2-raw-v1 \
        --dataset_split test --block_size 512 --max_eval_samples 256 --t 0.5 --output merged
    accelerate launch --num_processes 4 examples/align_and_merge.py ...

Writes into the output folder: `alignment/` (permutations, a few kB), `merged/t-0.25/`, `t-0.5/`, `t-0.75/` (ordinary
checkpoints), `layers.md` (what was moved), and `path/` (report, table and pictures of the path).

Language models are evaluated on blocks of text, image classifiers on images; without `--dataset`, on what the
fine-tuning examples kept for it.
"""

import argparse
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from example_data import TextArguments
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import PreTrainedModel

from hf_moe_lmc.alignment import Alignment, align, merge_checkpoints
from hf_moe_lmc.connectivity import PathReport, evaluate_path
from hf_moe_lmc.connectivity.data import examples_for, load_rows, processor_of
from hf_moe_lmc.demo.digits import digits_file, load_digits
from hf_moe_lmc.verification import load_plainly


def layer_table(alignment: Alignment) -> str:
    """Markdown: how far every layer of the two models is apart before and after, and how many experts have moved."""
    lines = ["| layer | distance before | after | experts moved |", "| --- | ---: | ---: | ---: |"]
    for name, layer in alignment.layers.items():
        order = layer.symmetry.experts.index
        moved = int((order != torch.arange(len(order))).sum())
        lines.append(f"| {name} | {layer.distance_before:.4g} | {layer.distance_after:.4g} | {moved} of {len(order)} |")
    return "\n".join(lines) + "\n"


def evaluation_data(model: PreTrainedModel, checkpoint: str, options: argparse.Namespace) -> Dataset:
    """What `model` is evaluated on, and what the output sizes are calibrated on before that."""
    number = options.max_eval_samples
    if options.dataset:
        rows = load_rows(options.dataset, options.dataset_config, options.dataset_split)
        processor = processor_of(model, checkpoint)
        return examples_for(model, rows, processor, length=options.block_size, max_examples=number)
    if model.main_input_name == "pixel_values":
        test = load_digits(digits_file())[1]
        return Subset(test, range(min(number, len(test))))
    text = TextArguments(block_size=options.block_size, max_eval_samples=number)
    return text.blocks(processor_of(model, checkpoint))[1]


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """What the path is measured on."""
    parser.add_argument("--dataset", help="a local file or folder, or a dataset on the Hub (default: bundled data)")
    parser.add_argument("--dataset_config")
    parser.add_argument("--dataset_split", default="test")
    parser.add_argument("--block_size", type=int, default=64, help="tokens per block")
    parser.add_argument("--max_eval_samples", type=int, default=256, help="blocks or images; a quarter calibrates")
    parser.add_argument("--points", type=int, default=11, help="of the evaluated path")
    parser.add_argument("--batch_size", type=int, default=64)


def measure_path(alignment: Alignment, options: argparse.Namespace) -> PathReport:
    """Loss and accuracy on the line between the two models, as they are and aligned."""
    reference, other = (load_plainly(name, torch.float32) for name in (options.reference, options.other))
    data = evaluation_data(reference, reference.name_or_path, options)
    apart = len(data) // 4
    return evaluate_path(
        reference,
        other,
        alignment,
        DataLoader(Subset(data, range(apart, len(data))), options.batch_size),
        options.points,
        calibration=DataLoader(Subset(data, range(apart)), (apart + 1) // 2),
        arrangements=("naive", "units", "aligned"),
    )


def main(arguments: list[str] | None = None) -> None:
    """Align, merge, evaluate, and write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", help="a folder, or repo or repo@revision on the Hub: t = 0")
    parser.add_argument("other", help="the same: t = 1, once aligned")
    parser.add_argument("--output", type=Path, default=Path("merged"))
    parser.add_argument("--expert_order", choices=("units", "gate", "gram", "joint"), default=None)
    parser.add_argument("--t", type=float, nargs="+", default=[0.25, 0.5, 0.75], help="points to write a merge of")
    add_data_arguments(parser)
    options = parser.parse_args(arguments)

    alignment = align(options.reference, options.other, options.expert_order)
    options.output.mkdir(parents=True, exist_ok=True)
    merge_checkpoints(options.reference, options.other, options.output / "merged", alignment, options.t)

    report = measure_path(alignment, options)
    if PartialState().is_main_process:
        alignment.save_pretrained(options.output / "alignment")
        (options.output / "layers.md").write_text(layer_table(alignment), encoding="utf-8")
        report.save(options.output / "path")
        sys.stdout.write(f"{layer_table(alignment)}\n{report.markdown()}\nWritten to {options.output}\n")


if __name__ == "__main__":
    main()
