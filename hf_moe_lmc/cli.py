"""The command line."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn, get_args

from hf_moe_lmc.demo import Recipe, run_demo
from hf_moe_lmc.errors import MoeLmcError
from hf_moe_lmc.modeling import MoeVariant

USAGE_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit with 2."""
        self.exit(USAGE_EXIT_CODE, f"error: {message}; see '{self.prog} --help'\n")


def parser() -> Parser:
    """All commands and their options."""
    root = Parser(
        prog="hf-moe-lmc",
        description="Align, merge and evaluate Mixture-of-Experts checkpoints of Hugging Face Transformers.",
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train, align, merge and measure small MoE ViTs on real digits, in minutes",
        description="Train one small Mixture-of-Experts ViT per seed on real MNIST digits, align and merge every pair, "
        "and measure the loss along all paths. Run again with the same --out, it does not train again.",
    )
    demo.add_argument("--out", type=Path, help="output folder (default: demo-VARIANT)")
    demo.add_argument("--seeds", type=int, nargs="+", default=[5, 6, 7], help="one endpoint each (default: 5 6 7)")
    demo.add_argument(
        "--variant", choices=get_args(MoeVariant), default="sparse", help="how experts are combined (default: sparse)"
    )
    return root


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors are one line on standard error, and the exit code says of which kind."""
    options = parser().parse_args(arguments)
    try:
        out = options.out or Path(f"demo-{options.variant}")
        report = run_demo(out, options.seeds, Recipe(variant=options.variant))
    except MoeLmcError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again to go on\n")
        return INTERRUPTED_EXIT_CODE
    scramble = report.scramble
    recovered = "recovered" if scramble.recovered_bit_for_bit else "NOT recovered"
    sys.stdout.write(
        f"\n{report.table()}\n\n"
        f"Scrambled endpoint: loss barrier {scramble.naive_loss_barrier:.3f}, aligned "
        f"{scramble.aligned_loss_barrier:.3f}, weights {recovered} bit for bit.\n"
        f"Written to {out} in {report.wall_seconds:.0f} s: README.md, barrier.png, report.json, merged/\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
