"""`hf-moe-lmc apply`."""

import argparse
from typing import Any

from .answer import Answer
from .arguments import MODEL, add_command, add_output, add_writing, describe_plan, output_options
from .kept_memory import keep_freed_memory


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `apply`."""
    apply = add_command(
        commands,
        "apply",
        run,
        "rewrite a checkpoint by an alignment; it computes what it computed before",
        "Write the checkpoint OTHER, rewritten by ALIGNMENT, to a new folder. No weight is rounded.",
    )
    apply.add_argument("alignment", metavar="ALIGNMENT", help="folder of an alignment, or its repository on the Hub")
    apply.add_argument("other", metavar="OTHER", help=MODEL)
    add_output(apply, "folder of the rewritten checkpoint")
    add_writing(apply)


def run(options: argparse.Namespace) -> Answer:
    """Apply and write."""
    from hf_moe_lmc.alignment import Alignment, apply, open_checkpoint, plan_writing
    from hf_moe_lmc.hub import write_card

    keep_freed_memory()
    alignment = Alignment.from_pretrained(options.alignment)
    how = output_options(options)
    if options.dry_run:
        opened = open_checkpoint(options.other, quantised=True)
        return describe_plan(plan_writing(opened, (), 1, options.output, how))
    apply(alignment, options.other, options.output, how, allow_other_weights=options.allow_other_weights)
    write_card(options.output, alignment)
    return Answer(f"Written to {options.output}\n", {"output": options.output})
