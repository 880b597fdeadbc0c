"""`hf-moe-lmc demo`."""

import argparse
from pathlib import Path
from typing import Any, get_args

from hf_moe_lmc.names import MoeVariant

from .arguments import add_command, at_least
from .results import CommandResult


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `demo`."""
    demo = add_command(
        commands,
        "demo",
        run,
        "train, align, merge and measure small MoE ViTs on real digits, in minutes",
        "Train one small Mixture-of-Experts ViT per seed on real MNIST digits, align and merge every pair, "
        "and measure the loss along all paths. A second run with the same --output shows what the first one found; a "
        "killed one goes on where it was. "
        "Takes about two and a half minutes and 0.6 GB on 2 CPU cores.",
    )
    demo.add_argument("-o", "--output", metavar="FOLDER", type=Path, help="output folder (default: demo-VARIANT)")
    demo.add_argument(
        "--seeds", type=at_least(0), nargs="+", default=[5, 6, 7], help="one endpoint each (default: 5 6 7)"
    )
    demo.add_argument(
        "--variant", choices=get_args(MoeVariant), default="sparse", help="how experts are combined (default: sparse)"
    )


def run(options: argparse.Namespace) -> CommandResult:
    """Run the demo, and print its table."""
    from hf_moe_lmc.demo import Recipe, run_demo

    out = options.output or Path(f"demo-{options.variant}")
    report = run_demo(out, options.seeds, Recipe(variant=options.variant))
    scramble = report.scramble
    recovered = "recovered" if scramble.recovered_bit_for_bit else "NOT recovered"
    return CommandResult(
        f"{report.summary()}\n\n{report.table()}\n\n"
        f"Scrambled endpoint: loss barrier {scramble.naive_loss_barrier:.3f}, aligned "
        f"{scramble.aligned_loss_barrier:.3f}, weights {recovered} bit for bit.\n"
        f"{out}, made in {report.wall_seconds:.0f} s: README.md, barrier.png, report.json, merged/\n",
        report.to_json(),
    )
