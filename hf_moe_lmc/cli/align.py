"""`hf-moe-lmc align`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from .arguments import MODEL, add_matching, add_output, alignment_config, describe_alignment
from .kept_memory import keep_freed_memory


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `align`."""
    align = commands.add_parser(
        "align",
        help="find the rewrite of one checkpoint that brings it closest to another",
        description="Match experts and units of OTHER to those of REFERENCE, layer by layer; save the permutations, "
        "a few MB. Neither checkpoint is changed. Under `accelerate launch` the processes divide the layers.",
    )
    align.add_argument("reference", metavar="REFERENCE", help=MODEL)
    align.add_argument("other", metavar="OTHER", help=MODEL)
    add_output(align, "folder of the alignment")
    add_matching(align)
    align.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Align and save; say what was achieved."""
    from hf_moe_lmc.alignment import align_into, open_checkpoint, plan_alignment
    from hf_moe_lmc.alignment.processes import processes

    keep_freed_memory()
    reference, other = (open_checkpoint(name, quantised=True) for name in (options.reference, options.other))
    if options.dry_run:
        sys.stdout.write(plan_alignment(reference, other).text)
        return 0
    alignment = align_into(Path(options.output), reference, other, alignment_config(options), options.overwrite)
    if processes().is_main_process:
        sys.stdout.write(f"{describe_alignment(alignment)}Written to {options.output}\n")
    return 0
