"""Aligns two Mixture-of-Experts checkpoints, merges them at several points, and measures the path between them.

    python examples/align_and_merge.py vit-moe/seed-1 vit-moe/seed-2 --output vit-merged
    python examples/align_and_merge.py copy-1 copy-2 --dataset book.txt --block_size 64 --output merged
    python examples/align_and_merge.py org/a@v1 org/b --dataset Salesforce/wikitext --dataset_config wikitext-2-raw-v1 \
        --dataset_split test --block_size 512 --max_eval_samples 256 --t 0.5 --output merged
    accelerate launch --num_processes 4 examples/align_and_merge.py ...

Writes into the output folder: `alignment/` (permutations, a few kB), `merged/t-0.25/`, `t-0.5/`, `t-0.75/` (ordinary
checkpoints), `layers.md` (distances), and `path/` (report, table and plots of the path).

Language models are evaluated on blocks of text, image classifiers on images; without `--dataset`, on what the
fine-tuning examples kept for it.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from example_data import TextArguments
from example_parser import ExampleParser
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import PreTrainedModel

from hf_moe_lmc import Alignment, MoeAligner
from hf_moe_lmc.connectivity import PathReport
from hf_moe_lmc.connectivity.data import examples_for, load_rows, processor_of
from hf_moe_lmc.demo.digits import digits_file, load_digits
from hf_moe_lmc.names import ExpertOrder

PAIR = {
    "reference": "a folder, or repo or repo@revision on the Hub: t = 0",
    "other": "the same: t = 1, once aligned",
}


@dataclass
class EvaluationArguments:
    """The data that the path is measured on, and the points."""

    dataset: str | None = field(
        default=None, metadata={"help": "a local file or folder, or a dataset on the Hub; default: bundled data"}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "of a dataset on the Hub"})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "of a dataset on the Hub: branch, tag, commit"}
    )
    dataset_split: str = field(default="test", metadata={"help": "of a dataset on the Hub"})
    block_size: int = field(default=64, metadata={"help": "tokens per block"})
    max_eval_samples: int = field(default=256, metadata={"help": "blocks or images; a quarter calibrates"})
    points: int = field(default=11, metadata={"help": "of the evaluated path"})
    batch_size: int = field(default=64, metadata={"help": "blocks or images, per process"})


@dataclass
class MergeArguments:
    """The merges."""

    output: str = field(default="merged", metadata={"help": "a new folder"})
    expert_order: ExpertOrder = field(default="auto", metadata={"help": "the way to match experts"})
    t: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75], metadata={"help": "points to write a merge of"})
    force: bool = field(default=False, metadata={"help": "merge models of which layers are unrelated, too"})


def layer_table(alignment: Alignment) -> str:
    """Markdown: the distance of every layer before and after, and the share of experts at another place."""
    lines = ["| layer | distance before | after | experts permuted |", "| --- | ---: | ---: | ---: |"]
    for row in alignment.layer_table():
        distances = f"{row['distance_before']:.4g} | {row['distance_after']:.4g}"
        lines.append(f"| {row['name']} | {distances} | {row['experts_permuted']:.0%} |")
    return "\n".join(lines) + "\n"


def evaluation_data(model: PreTrainedModel, checkpoint: str | Path, evaluation: EvaluationArguments) -> Dataset:
    """The data that `model` is evaluated on; a quarter of it calibrates."""
    number = evaluation.max_eval_samples
    if evaluation.dataset:
        asked = evaluation.dataset_config, evaluation.dataset_split, evaluation.dataset_revision
        rows = load_rows(evaluation.dataset, *asked)
        processor = processor_of(model, checkpoint)
        return examples_for(model, rows, processor, length=evaluation.block_size, max_examples=number)
    if model.main_input_name == "pixel_values":
        test = load_digits(digits_file())[1]
        return Subset(test, range(min(number, len(test))))
    text = TextArguments(block_size=evaluation.block_size, max_eval_samples=number)
    return text.blocks(processor_of(model, checkpoint))[1]


def measure_path(aligner: MoeAligner, alignment: Alignment, evaluation: EvaluationArguments) -> PathReport:
    """Loss and accuracy on the line between the two models, as they are and aligned."""
    reference = aligner.models.reference
    data = evaluation_data(reference.model, reference.paths[0], evaluation)
    apart = len(data) // 4
    return aligner.evaluate(
        alignment,
        DataLoader(Subset(data, range(apart, len(data))), evaluation.batch_size),
        evaluation.points,
        calibration=DataLoader(Subset(data, range(apart)), (apart + 1) // 2),
        variants=("naive", "units", "aligned"),
        dtype=torch.float32,
        experts_implementation="eager",
    )


def main(arguments: list[str] | None = None) -> None:
    """Align, merge, evaluate, and write everything."""
    parser = ExampleParser(MergeArguments, EvaluationArguments, description=__doc__, positional=PAIR)
    options, evaluation, given = parser.parse_args_into_dataclasses(arguments)
    aligner, output = MoeAligner.from_pretrained(given.reference, given.other), Path(options.output)

    alignment = aligner.align(options.expert_order)
    output.mkdir(parents=True, exist_ok=True)
    aligner.merge(alignment, options.t, output=output / "merged", force=options.force)

    report = measure_path(aligner, alignment, evaluation)
    if PartialState().is_main_process:
        alignment.save_pretrained(output / "alignment")
        (output / "layers.md").write_text(layer_table(alignment), encoding="utf-8")
        report.save(output / "path")
        sys.stdout.write(f"{layer_table(alignment)}\n{report.markdown()}\nWritten to {output}\n")


if __name__ == "__main__":
    main()
