"""`hf-moe-lmc align`."""

import argparse
from dataclasses import replace
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
    from hf_moe_lmc.aligner import MoeAligner
    from hf_moe_lmc.alignment import Alignment

CAUSES = 3  # sentences of the comparison
FAR = 0.5  # of the distance that random orders of units leave


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
    result = describe_alignment(alignment, [options.other], options.output, aligner.models.texts)
    sentences = _sentences(aligner, cast("Alignment", alignment))
    pointer = f"what else differs: hf-moe-lmc compare {options.reference} {options.other}"
    lines = "".join(f"{line}\n" for line in sentences or [pointer])
    return replace(result, text=f"{result.text}{lines}", document={**result.document, "causes": sentences})


def _sentences(aligner: "MoeAligner", alignment: "Alignment") -> list[str]:
    """The first sentences of the comparison, which reads both models again, where no order brings all experts near."""
    from hf_moe_lmc.comparison import compare_opened

    evidence = [(layer.distance_after, layer.evidence) for layer in alignment.layers.values() if layer.evidence]
    if all(not own.unrelated and distance < FAR * own.random_distance for distance, own in evidence):
        return []
    return list(compare_opened(*aligner.models.models).sentences[:CAUSES])
