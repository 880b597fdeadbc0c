"""`hf-moe-lmc compare`."""

import argparse
from typing import Any

from .arguments import MODEL, add_command, plot_file
from .results import CommandResult, text_table

SAME, DIFFERENT = 0, 1
HEAD = ("layer or tensor", "slot", "kind", "source", "change", "units", "free changes", "z")


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `compare`."""
    compare = add_command(
        commands,
        "compare",
        run,
        "say what became of every expert: two models, and the difference between them in words",
        "Say of every expert, router and tensor of B what it is in terms of A: identical, rounded, changed by x %, "
        "moved, copied, missing, unrelated, or stored wrongly; and what that means. Reads all weights, layer by layer.",
    )
    compare.add_argument("a", metavar="A", help=MODEL)
    compare.add_argument("b", metavar="B", help="the model to be described in terms of A")
    compare.add_argument("--table", action="store_true", help="a row for every expert and every tensor")
    compare.add_argument("--plot", type=plot_file, metavar="FILE", help="plot it: layers down, experts across")
    compare.add_argument(
        "--exit-code", action="store_true", help="exit with 1 unless both compute the same function, as git diff does"
    )


def run(options: argparse.Namespace) -> CommandResult:
    """Print what became of B."""
    from hf_moe_lmc.comparison import compare, plot_comparison

    comparison = compare(options.a, options.b)
    if options.plot:
        plot_comparison(comparison, options.plot)
    table = f"\n{text_table(HEAD, comparison.rows())}\n" if options.table else ""
    code = DIFFERENT if options.exit_code and not comparison.same_function else SAME
    return CommandResult(comparison.summary() + table, comparison.to_dict(), code)
