"""Averaging ten checkpoints of one run: `hf-moe-lmc merge` beside mergekit and the loop that people write.

python -m benchmarks.average --mergekit PATH_OF_mergekit-yaml [--layers 1]

The checkpoints are those of `benchmarks.pair`, unscrambled, each a little farther from the first: every second in
shards of float32, the others in one file of bfloat16. mergekit lives in an environment of its own (see
`benchmarks.merge_vs_mergekit`). Every run is a process with one thread; they run one after the other. Writes
`results/average.md`. Exits with 1 if one of our tensors is not the mean in float32, rounded once.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import MixtralForCausalLM

from .merge_vs_mergekit import OURS, Ratio, machine, measure, mergekit_version, table
from .pair import NOISE, configuration

NUMBER = 10
SHARD = "100MB"
RESULT = Path(__file__).parent / "results" / "average.md"
NOTE = (
    "Other programs used the cores meanwhile: wall seconds are an upper bound, CPU seconds and memory are as measured."
)


def write_run(folder: Path, layers: int) -> list[Path]:
    """Write checkpoints of one run."""
    torch.manual_seed(0)
    model = MixtralForCausalLM(configuration(layers)).float()
    for step in range(NUMBER):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * (NOISE * 0.02))
        dtype, sizes = ((torch.bfloat16, {}), (torch.float32, {"max_shard_size": SHARD}))[step % 2]
        deepcopy(model).to(dtype).save_pretrained(folder / str(step), **sizes)
    return [folder / str(step) for step in range(NUMBER)]


def loop(folders: list[Path], output: Path) -> None:
    """The loop: one checkpoint after the other is added to sums in float32."""
    mean: dict[str, torch.Tensor] = {}
    for folder in folders:
        for key, tensor in stored(folder):
            mean[key] = mean[key] + tensor.float() / len(folders) if key in mean else tensor.float() / len(folders)
    output.mkdir()
    save_file({key: tensor.bfloat16() for key, tensor in mean.items()}, output / "model.safetensors")


def stored(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Key and tensor, file by file."""
    for file in sorted(folder.glob("*.safetensors")):
        yield from load_file(file).items()


def differing(folders: list[Path], output: Path) -> list[str]:
    """Names of the tensors of `output` that are not `x_0 + sum_i (x_i - x_0) / n` in float32, rounded once."""
    files = [[safe_open(file, "pt") for file in folder.glob("*.safetensors")] for folder in folders]
    found = [{key: file for file in own for key in list(file.keys())} for own in files]
    wrong = []
    for key, tensor in stored(output):
        first, *others = (own[key].get_tensor(key).float() for own in found)
        mean = first.clone()
        for other in others:
            mean.add_(other - first, alpha=1 / len(folders))
        wrong += [] if torch.equal(mean.bfloat16(), tensor) else [key]
    return wrong


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", type=Path)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--loop", nargs="+", type=Path, help="output and inputs: only the loop")
    options = parser.parse_args()
    if options.loop:
        loop(options.loop[1:], options.loop[0])
        return 0
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        folders = write_run(work, options.layers)
        models = [{"model": str(folder), "parameters": {"weight": 1.0}} for folder in folders]
        (work / "linear.yml").write_text(json.dumps({"models": models, "merge_method": "linear", "dtype": "bfloat16"}))
        quiet = ["--no-write-model-card", "--no-copy-tokenizer"]
        mergekit = [str(options.mergekit), str(work / "linear.yml"), str(work / "mergekit"), *quiet]
        ours, names = [*OURS, "merge", *map(str, folders), "-o"], [work / "none", work / "auto"]
        plain = [sys.executable, "-m", "benchmarks.average", "--loop", work / "loop", *folders]
        costs = [
            measure("mergekit, linear", mergekit, PYTHONPATH=""),
            measure("a loop over safetensors", list(map(str, plain))),
            measure("hf-moe-lmc merge --expert-order none", [*ours, str(names[0]), "--expert-order", "none"]),
            measure("hf-moe-lmc merge, which sees that all is in order", [*ours, str(names[1])]),
        ]
        wrong = [key for name in names for key in differing(folders, name)]
        size = sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))
    facts = machine() | {"peer": mergekit_version(options.mergekit), "GB in all": round(size / 1e9, 2)}
    ratios = table([Ratio(cost, costs[0]) for cost in costs])
    text = f"{__doc__.partition(chr(10))[0]}\n\n{ratios}\n\n{NOTE}\n\n{json.dumps(facts)}\n"
    text += f"\nTensors of ours that are not the mean in float32, rounded once: {', '.join(wrong) or 'none'}.\n"
    RESULT.write_text(text)
    sys.stdout.write(text)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
