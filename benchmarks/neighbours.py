"""Wall time beside processes that keep all cores busy, as a ratio to the time without them; default settings.

python -m benchmarks.neighbours [--layers 4] [--seeds 5 6] [--jobs align merge evaluate demo]

Two processes (`--busy`) that only count are started, and ended. `align` and `merge` work on a pair of `benchmarks.pair`
(4 layers: 0.8 GB a model), `evaluate` on a path of three points of that pair, `demo` trains two endpoints. The ratio
should be 2.2 at most.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from hf_moe_lmc import MoeAligner
from hf_moe_lmc.connectivity.data import Blocks

from .merge_vs_mergekit import OURS, measure
from .pair import configuration, write_pair

MOST = 2.2
BUSY = [sys.executable, "-c", "while True: pass"]
DEFAULT = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}


@contextmanager
def busy(number: int) -> Iterator[None]:
    """Within, so many processes keep cores busy."""
    processes = [subprocess.Popen(BUSY) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def evaluate(folder: Path) -> None:
    """The naive and the aligned path, three points each, on 2,048 tokens."""
    tokens = torch.randint(1000, (8, 256), generator=torch.Generator().manual_seed(0))
    MoeAligner.from_pretrained(folder / "a", folder / "b").evaluate(
        "auto", DataLoader(Blocks(tokens), 4), 3, repairs=()
    )


def commands(folder: Path, seeds: list[str]) -> dict[str, list[str]]:
    """Job -> command; each may be given again."""
    sides = [str(folder / "a"), str(folder / "b")]
    return {
        "align": [*OURS, "align", *sides, "-o", str(folder / "alignment"), "--overwrite"],
        "merge": [*OURS, "merge", *sides, "-o", str(folder / "merged"), "--overwrite"],
        "evaluate": [sys.executable, "-m", "benchmarks.neighbours", "--evaluate", str(folder)],
        "demo": [*OURS, "demo", "--seeds", *seeds, "-o"],
    }


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seeds", nargs="+", default=["5", "6"])
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--jobs", nargs="+", default=["align", "merge", "evaluate", "demo"])
    parser.add_argument("--evaluate", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.evaluate:
        evaluate(options.evaluate)
        return
    sys.stdout.write(f"| | wall s | beside {options.busy} | ratio, at most {MOST} |\n|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pair(folder, configuration(options.layers))
        given = commands(folder, options.seeds)
        for job in options.jobs:
            # A demo that is given again shows what the first one found.
            outputs = [[str(folder / name)] if job == "demo" else [] for name in ("quiet", "beside")]
            quiet = measure(job, [*given[job], *outputs[0]], **DEFAULT)
            with busy(options.busy):
                beside = measure(job, [*given[job], *outputs[1]], **DEFAULT)
            sys.stdout.write(f"| {job} | {quiet.wall:.1f} | {beside.wall:.1f} | {beside.wall / quiet.wall:.2f} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
