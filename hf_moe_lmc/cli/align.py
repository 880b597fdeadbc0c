"""`hf-moe-lmc align`."""

import argparse
from typing import TYPE_CHECKING, Any, cast

from .arguments import (
    add_command,
    add_hub,
    add_matching,
    add_output,
    add_pair,
    alignment_config,
    hub_options,
    plot_file,
)
from .results import CommandResult, describe_alignment, describe_plan

if TYPE_CHECKING:
    from hf_moe_lmc.alignment import Alignment


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
    align.add_argument(
        "--plot",
        type=plot_file,
        metavar="FILE",
        help="plot the distances of all layers, and the similarity of the first one's experts",
    )
    add_hub(align)


def run(options: argparse.Namespace) -> CommandResult | None:
    """Align, save, and report the distances."""
    from hf_moe_lmc.aligner import MoeAligner, plan_align
    from hf_moe_lmc.alignment import keep_freed_memory, plot_alignment, processes

    keep_freed_memory()
    aligner = MoeAligner.from_pretrained(options.reference, options.other, **hub_options(options))
    config, where = alignment_config(options), {"device": options.device, "memory": options.memory}
    if options.dry_run:
        return describe_plan(plan_align(aligner, config, **where), options.output)
    alignment = aligner.align(config, output=options.output, overwrite=options.overwrite, **where)
    if not processes().is_main_process:
        return None
    if options.plot:
        plot_alignment(cast("Alignment", alignment), options.plot)
    return describe_alignment(alignment, [options.other], options.output, aligner.models.texts)
