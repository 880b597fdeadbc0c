"""Runs cells of the grid; a killed run goes on, and cells can be shared out over processes and machines.

    python -m benchmarks.paper.run --quick                 # under 15 minutes on two cores
    python -m benchmarks.paper.run                         # everything that needs no network
    python -m benchmarks.paper.run 'order-vit/*' --share 1/4
    python -m benchmarks.paper.run --grid benchmarks/paper/scale.yaml --cifar10 FOLDER   # needs benchmarks.paper.cifar

Every finished cell is one JSON file below `runs/paper/rows`, every trained model one file below `runs/paper/models`.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub.utils import disable_progress_bars

from hf_moe_lmc.merging import AUTOMATIC

from . import cifar
from .cells import Cell
from .comparison import compare
from .data import load
from .endpoints import trained_backbone, trained_copy
from .frozen import cut
from .grid import GRID, chosen, load_grid, quick_cells
from .orders import rank_orders
from .pair import Pair
from .tables import SMALL

RUNS = Path("runs/paper")
PACKAGES = ("hf_moe_lmc", "torch", "transformers", "accelerate", "scipy", "lapx", "tokenizers")


def run_cell(cell: Cell, folder: Path = RUNS, cifar10: str = cifar.HUB_ID) -> dict[str, object]:
    """The row of `cell`: read from `folder`, or trained, measured and written there now.

    A row with more points or seeds than asked for stays as it is; one with fewer is replaced.
    """
    file = folder / "rows" / f"{cell.name}.json"
    if file.exists() and holds(row := json.loads(file.read_text(encoding="utf-8")), cell):
        return row
    wall, cpu = time.perf_counter(), time.process_time()
    sources, kept = load(cell.data, cell.model, cifar10), folder / "models"
    backbone = trained_backbone(cell, sources, kept)
    part, dense = cell, backbone.model
    if cell.is_cut:
        part, dense, sources = cut(cell, dense, sources)
    copies = {
        end: trained_copy(part, end, dense, sources, kept / f"copy-{cell.endpoint_key(end)}.safetensors")
        for pair in cell.pairs
        for end in pair
    }
    trained = time.process_time()
    pairs = []
    for number, (a, b) in enumerate(cell.pairs):
        pair = Pair(part, copies[a].model, copies[b].model, sources)
        results = compare(pair, number)
        found = {"pair": [str(a), str(b)], "results": results, "repairs": list(pair.repairs)}
        if cell.all_orders and (naive := results[cell.data]["naive"]["loss_barrier"]) > SMALL:
            found["orders"] = rank_orders(pair, naive)
        pairs.append(found)
    row = {
        "cell": asdict(cell),
        "pairs": pairs,
        "repairs": AUTOMATIC,
        "cpu_seconds": {
            "backbone": backbone.cpu_seconds,
            "copies": sum(copy.cpu_seconds for copy in copies.values()),
            "comparison": round(time.process_time() - trained, 1),
            "this_run": round(time.process_time() - cpu, 1),
        },
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {package: version(package) for package in PACKAGES},
    }
    write_whole(file, json.dumps(row, indent=1) + "\n")
    return row


def holds(row: dict, cell: Cell, reduced: bool = False) -> bool:
    """Whether `row` is of the settings of `cell`, with at least its points and seeds, or, if `reduced`, with any."""
    found, wanted = row["cell"], json.loads(json.dumps(asdict(cell)))
    reducible = {"points": wanted["points"], "seeds": wanted["seeds"]}
    enough = found["points"] >= cell.points and set(found["seeds"]) >= set(cell.seeds)
    return (enough or reduced) and found | reducible == wanted


def write_whole(file: Path, text: str) -> None:
    """Write `file` so that a killed run leaves the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


def share_of(cells: Sequence[Cell], share: str) -> list[Cell]:
    """Every n-th cell from the i-th on, for `share` = "i/n", i from 1."""
    number, of = map(int, share.split("/"))
    return list(cells[number - 1 :: of])


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", default=["*"], help="names, * for anything; in this order")
    parser.add_argument("--grid", type=Path, default=GRID, help="the file of cells: grid.yaml, or scale.yaml beside it")
    parser.add_argument("--cifar10", default=cifar.HUB_ID, help="a folder of its parquet files, or its id on the Hub")
    parser.add_argument("--quick", action="store_true", help="the cells that the grid calls quick")
    parser.add_argument("--share", default="1/1", metavar="i/n", help="only part i of n")
    parser.add_argument("--network", action="store_true", help="also the cells whose data lies on the Hub")
    parser.add_argument("--points", type=int, default=25, help="at most so many points of a path, for a first look")
    parser.add_argument("--seeds", type=int, help="only the first so many seeds, likewise")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["ACCELERATE_USE_CPU"] = str(options.device == "cpu")
    disable_progress_bars()
    offline = [cell for table in load_grid(options.grid) if options.network or not table.needs for cell in table.cells]
    for cell in share_of(quick_cells() if options.quick else chosen(offline, options.cells), options.share):
        cell = replace(cell, points=min(cell.points, options.points), seeds=cell.seeds[: options.seeds])
        row = run_cell(cell, cifar10=options.cifar10)
        sources = row["pairs"][0]["results"].values()
        found = [f"{path} {result[path]['loss_barrier']:.4f}" for result in sources for path in ("naive", "auto")]
        print(f"{cell.name}: {', '.join(found)} nats (first pair); {row['wall_seconds']} s", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
