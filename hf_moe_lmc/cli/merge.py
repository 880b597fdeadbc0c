"""`hf-moe-lmc merge`."""

import argparse
from pathlib import Path
from typing import Any

from .answer import Answer
from .arguments import (
    add_command,
    add_matching,
    add_output,
    add_pair,
    add_writing,
    alignment_config,
    describe_alignment,
    describe_plan,
    output_options,
)
from .kept_memory import keep_freed_memory


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `merge`."""
    merge = add_command(
        commands,
        "merge",
        run,
        "merge two checkpoints along the straight line between them, aligned",
        "Write (1 - t) REFERENCE + t (OTHER, aligned) to a new folder: an ordinary checkpoint, with the "
        "tokenizer and the settings of REFERENCE. Layer by layer, so both may be larger than memory.",
    )
    add_pair(merge)
    merge.add_argument(
        "--alignment", metavar="FOLDER", help="a saved alignment, or its repository on the Hub (default: align first)"
    )
    merge.add_argument(
        "--t",
        type=float,
        nargs="+",
        default=[0.5],
        help="0 is REFERENCE, 1 is OTHER; several make one folder t-... each, in one pass (default: 0.5)",
    )
    merge.add_argument(
        "--keep-norms",
        action="store_true",
        help="give units and router rows the norms back that averaging takes from them; needs no data",
    )
    add_output(merge, "folder of the merge")
    add_writing(merge)
    add_matching(merge)


def run(options: argparse.Namespace) -> Answer | None:
    """Align if need be, merge and write."""
    from hf_moe_lmc.alignment import Alignment, merge_checkpoints, open_checkpoint, plan_writing
    from hf_moe_lmc.alignment.processes import processes
    from hf_moe_lmc.hub import write_card

    keep_freed_memory()
    how = output_options(options)
    if options.dry_run:
        reference, other = open_checkpoint(options.reference), open_checkpoint(options.other)
        return describe_plan(plan_writing(reference, other, len(options.t), options.output, how))
    alignment = merge_checkpoints(
        options.reference,
        options.other,
        options.output,
        Alignment.from_pretrained(options.alignment) if options.alignment else alignment_config(options),
        options.t[0] if len(options.t) == 1 else options.t,
        how,
        allow_other_weights=options.allow_other_weights,
        keep_norms=options.keep_norms,
    )
    if not processes().is_main_process:
        return None
    root = Path(options.output)
    for folder in [root] if len(options.t) == 1 else sorted(root.glob("t-*")):
        write_card(folder, alignment)
    return describe_alignment(alignment, options.output)
