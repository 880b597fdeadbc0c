"""`hf-moe-lmc apply`."""

import argparse
from typing import Any

from .arguments import MODEL, add_command, add_hub, add_output, add_writing, hub_options, load_alignment, torch_dtype
from .results import CommandResult, describe_plan, written_notes


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
    add_hub(apply)


def run(options: argparse.Namespace) -> CommandResult | None:
    """Apply and write."""
    from hf_moe_lmc.aligner import apply, plan_apply
    from hf_moe_lmc.alignment import keep_freed_memory, processes

    keep_freed_memory()
    alignment, hub = load_alignment(options.alignment, options), hub_options(options)
    how = {name: getattr(options, name) for name in ("layout", "quantise", "overwrite")}
    how |= {"dtype": torch_dtype(options.dtype)}
    if options.dry_run:
        return describe_plan(plan_apply(options.other, options.output, **how, **hub), options.output)
    apply(alignment, options.other, options.output, allow_other_weights=options.allow_other_weights, **how, **hub)
    if not processes().is_main_process:
        return None
    rounded = f", but for the rounding to {options.quantise}" if options.quantise else ""
    beside = written_notes(options.output)
    return CommandResult(
        "".join(f"{line}\n" for line in beside)
        + f"Written to {options.output}; it computes what {options.other} computes{rounded}\n",
        {"output": options.output, "notes": beside},
    )
