"""How the cost of an alignment grows: with E, F and H of one layer, with the number of layers, with processes.

python -m benchmarks.scaling [--output FOLDER]

Writes scaling.json and scaling.md. Layers are those of `benchmarks.layer`, scrambled siblings, aligned by
`align_layers(..., "auto")`; checkpoints are small Mixtrals, aligned by `align`, with two processes through torchrun.
"CPU s" is that of the alignment, of the busiest process, without what starting takes. Predicted are the passes over the
weights, which grow as "weights GB", and the comparison of all units with all others in 32 coordinates, which grows as
"GFLOP" = `2 * 33 E F^2` a layer; "predicted" is by how much they grow from one row to the next, "growth" is what was
measured.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from transformers import MixtralConfig

from hf_moe_lmc import align
from hf_moe_lmc.matching import align_layers
from hf_moe_lmc.moe import act

from .assignment import cpu_seconds
from .layer import GROUP, Row, draw_layer, near
from .pair import write_pair
from .report import FOLDER, report

REPEATS = 5
STEPS = (1, 2, 4, 8)
SHAPE = {"layers": 4, "E": 8, "F": 512, "H": 512}
FORMATS = {
    "grows": "",
    "layers": "",
    "E": "",
    "F": "",
    "H": "",
    "processes": "",
    "CPU s": ".3f",
    "weights GB": ".3f",
    "GFLOP": ".2f",
    "growth": ".2f",
    "predicted": "",
}


def align_layer(experts: int, units: int, hidden: int) -> float:
    """CPU seconds of aligning one layer."""
    row = Row("", experts, units, hidden, "siblings")
    reference = draw_layer(row, 0)
    planted = GROUP.random_derangement(*reference.symmetry_shape, generator=torch.Generator().manual_seed(3))
    other = act(planted, near(reference))
    return median(cpu_seconds(lambda: align_layers(reference, other)) for _ in range(REPEATS))


def align_checkpoints(pair: Path, processes: int) -> float:
    """CPU seconds of aligning FOLDER/a and FOLDER/b, of the busiest process."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *launcher, "-m", "benchmarks.scaling", "--pair", str(pair)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return max(map(float, done.stdout.split()))


def layer_rows() -> list[dict[str, object]]:
    """One layer, every dimension in turn."""
    return [
        row(axis, shape, 1, align_layer(shape["E"], shape["F"], shape["H"]))
        for axis in ("E", "F", "H")
        for shape in (SHAPE | {"layers": 1, axis: step * SHAPE[axis]} for step in STEPS)
    ]


def checkpoint_rows() -> list[dict[str, object]]:
    """Checkpoints of more and more layers, the last by two processes too."""
    rows = []
    for step in STEPS:
        shape = SHAPE | {"layers": step * SHAPE["layers"]}
        config = MixtralConfig(
            vocab_size=256,
            hidden_size=shape["H"],
            intermediate_size=shape["F"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=8,
            num_local_experts=shape["E"],
        )
        with tempfile.TemporaryDirectory() as folder:
            write_pair(Path(folder), config)
            rows.append(row("layers", shape, 1, align_checkpoints(Path(folder), 1)))
            if step == STEPS[-1]:
                rows += [row("processes", shape, p, align_checkpoints(Path(folder), p)) for p in (1, 2)]
    return rows


def row(grows: str, shape: dict[str, int], processes: int, seconds: float) -> dict[str, object]:
    """A row of the table, not yet compared with the one before."""
    layers, experts, units, hidden = (shape[axis] for axis in SHAPE)
    size = 2 * 2 * 3 * layers * experts * units * hidden / 1e9
    flops = 2 * 33 * layers * experts * units**2 / 1e9
    cost = {"CPU s": seconds, "weights GB": size, "GFLOP": flops}
    return {"grows": grows, **shape, "processes": processes} | cost | {"growth": None, "predicted": None}


def compare(rows: list[dict[str, object]]) -> None:
    """Fill in how much each row grew from the one before, where the same grows."""
    for before, after in pairwise(rows):
        if before["grows"] == after["grows"]:
            after["growth"] = after["CPU s"] / before["CPU s"]
            share = before["processes"] / after["processes"]
            expected = sorted({share * after[cost] / before[cost] for cost in ("weights GB", "GFLOP")})
            after["predicted"] = " to ".join(f"{growth:g}" for growth in expected)


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=FOLDER)
    parser.add_argument("--pair", type=Path, help="align it and print the CPU seconds, as one of the processes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.pair:
        start = time.process_time()
        align(options.pair / "a", options.pair / "b")
        sys.stdout.write(f"{time.process_time() - start}\n")
        return
    rows = layer_rows() + checkpoint_rows()
    compare(rows)
    report("scaling", rows, FORMATS, options.output)


if __name__ == "__main__":
    main()
