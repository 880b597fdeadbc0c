"""`hf-moe-lmc align`."""

import argparse
from pathlib import Path
from typing import Any

from .answer import Answer
from .arguments import (
    add_command,
    add_matching,
    add_output,
    add_pair,
    add_resources,
    alignment_config,
    describe_alignment,
    describe_plan,
)
from .kept_memory import keep_freed_memory


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `align`."""
    align = add_command(
        commands,
        "align",
        run,
        "find the rewrite of one checkpoint that brings it closest to another",
        "Match experts and units of OTHER to those of REFERENCE, layer by layer; save the permutations, "
        "a few MB. Neither checkpoint is changed. Under `accelerate launch` the processes divide the layers.",
    )
    add_pair(align)
    add_output(align, "folder of the alignment")
    add_matching(align)
    add_resources(align)
    align.add_argument(
        "--plot", metavar="FILE", help="a picture: distances of all layers, and how the experts of the first one fit"
    )


def run(options: argparse.Namespace) -> Answer | None:
    """Align and save; say what was achieved."""
    from hf_moe_lmc.alignment import Resources, align_into, open_checkpoint, plan_alignment, plot_alignment
    from hf_moe_lmc.alignment.processes import processes

    keep_freed_memory()
    reference, other = (open_checkpoint(name, quantised=True) for name in (options.reference, options.other))
    config, resources = alignment_config(options), Resources(options.device, options.memory)
    if options.dry_run:
        return describe_plan(plan_alignment(reference, other, config, resources))
    alignment = align_into(Path(options.output), reference, other, config, options.overwrite, resources)
    if not processes().is_main_process:
        return None
    if options.plot:
        plot_alignment(alignment, options.plot)
    return describe_alignment(alignment, options.output)
