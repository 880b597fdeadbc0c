"""`hf-moe-lmc apply`."""

import argparse
import sys
from typing import Any

from .arguments import MODEL, add_output, add_writing, output_options
from .kept_memory import keep_freed_memory


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `apply`."""
    apply = commands.add_parser(
        "apply",
        help="rewrite a checkpoint by an alignment; it computes what it computed before",
        description="Write the checkpoint OTHER, rewritten by ALIGNMENT, to a new folder. No weight is rounded.",
    )
    apply.add_argument("alignment", metavar="ALIGNMENT", help="folder of an alignment")
    apply.add_argument("other", metavar="OTHER", help=MODEL)
    add_output(apply, "folder of the rewritten checkpoint")
    add_writing(apply)
    apply.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Apply and write."""
    from hf_moe_lmc.alignment import Alignment, apply, open_checkpoint, plan_writing
    from hf_moe_lmc.hub import write_card

    keep_freed_memory()
    alignment = Alignment.from_pretrained(options.alignment)
    how = output_options(options)
    if options.dry_run:
        opened = open_checkpoint(options.other, quantised=True)
        sys.stdout.write(plan_writing(opened, None, 1, options.output, how).text)
        return 0
    apply(alignment, options.other, options.output, how, allow_other_weights=options.allow_other_weights)
    write_card(options.output, alignment)
    sys.stdout.write(f"Written to {options.output}\n")
    return 0
