"""Peak memory of evaluating a path whose other endpoint is read from disk at every point, or held in memory.

python -m benchmarks.path_memory [--points 5] [--pair FOLDER]

Every way is a process of its own with one thread; the curves must be equal. Exits with 1 if not.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import MixtralConfig

from hf_moe_lmc import Alignment, MoeAligner, align
from hf_moe_lmc.connectivity.data import Blocks

from .merge_vs_mergekit import measure
from .pair import write_pair

MEMORY = {"read from disk": 0, "held in memory": 10**12}


def evaluate(folder: Path, memory: int, points: int) -> None:
    """Write the losses along the aligned path to `folder`."""
    aligner = MoeAligner.from_pretrained(folder / "a", folder / "b")
    tokens = torch.randint(1000, (4, 64), generator=torch.Generator().manual_seed(0))
    report = aligner.evaluate(
        Alignment.from_pretrained(folder / "alignment"), DataLoader(Blocks(tokens), batch_size=2),
        points, variants=("aligned",), repairs=(), accelerator=Accelerator(cpu=True), memory=memory,
    )  # fmt: skip
    losses = {name: curve.barrier.loss for name, curve in report.curves.items()}
    (folder / f"{memory}.json").write_text(json.dumps(losses))


def main() -> int:
    """Measure both, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--pair", type=Path)
    parser.add_argument("--evaluate", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.evaluate is not None:
        evaluate(options.pair, options.evaluate, options.points)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.pair or Path(temporary)
        if not options.pair:
            write_pair(folder, MixtralConfig(
                vocab_size=1000, hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8,
                num_key_value_heads=4, num_local_experts=8,
            ))  # fmt: skip
            align(folder / "a", folder / "b").save_pretrained(folder / "alignment")
        size = sum(file.stat().st_size for file in (folder / "b").glob("*.safetensors"))
        sys.stdout.write(f"the other endpoint: {size / 1e9:.2f} GB\n")
        for name, memory in MEMORY.items():
            command = [sys.executable, "-m", "benchmarks.path_memory", "--points", str(options.points)]
            cost = measure(name, [*command, "--pair", str(folder), "--evaluate", str(memory)])
            sys.stdout.write(f"{name}: peak {cost.peak_memory / 1e9:.2f} GB, CPU {cost.cpu:.1f} s\n")
        curves = [(folder / f"{memory}.json").read_text() for memory in MEMORY.values()]
    sys.stdout.write(f"curves equal: {curves[0] == curves[1]}\n")
    return int(curves[0] != curves[1])


if __name__ == "__main__":
    sys.exit(main())
