"""`hf-moe-lmc merge`."""

import argparse
from typing import TYPE_CHECKING, Any, get_args

from hf_moe_lmc.names import Repair, Vocabulary

from .arguments import (
    MODEL,
    add_allowed,
    add_command,
    add_hub,
    add_matching,
    add_output,
    add_writing,
    alignment_config,
    hub_options,
    load_alignment,
    torch_dtype,
)
from .data import add_data, add_loading, calibration_data, load_options
from .failures import UsageError
from .results import CommandResult, describe_alignment, describe_output, describe_plan

if TYPE_CHECKING:
    from hf_moe_lmc.aligner import MoeAligner


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `merge`."""
    merge = add_command(
        commands,
        "merge",
        run,
        "merge checkpoints, aligned: two along the straight line between them, or several",
        "Write (1 - t) REFERENCE + t (OTHER, aligned) to a new folder: an ordinary checkpoint, with the "
        "tokenizer and the settings of REFERENCE. Layer by layer, so both may be larger than memory. With several "
        "OTHERs, their mean with REFERENCE, weighted by --shares: all are aligned to REFERENCE and then to one "
        "another, and memory holds one layer of every model.",
    )
    merge.add_argument("reference", metavar="REFERENCE", help=MODEL)
    merge.add_argument("other", metavar="OTHER", nargs="+", help="the same; one or more")
    merge.add_argument(
        "--alignment",
        metavar="FOLDER",
        nargs="+",
        help="a saved alignment, or its repository on the Hub, for each OTHER (default: align first)",
    )
    merge.add_argument(
        "--t",
        type=float,
        nargs="+",
        help="0 is REFERENCE, 1 is OTHER; several make one folder t-... each, in one pass (default: 0.5)",
    )
    merge.add_argument(
        "--shares",
        type=float,
        nargs="+",
        metavar="S",
        help="instead of --t, a number for REFERENCE and one for each OTHER, in any unit (default: all the same)",
    )
    merge.add_argument(
        "--extrapolate",
        action="store_true",
        help="allow --t outside 0 to 1 and negative --shares: 1 1 -1 is A + (B - BASE)",
    )
    merge.add_argument(
        "--repair",
        nargs="+",
        choices=(*get_args(Repair), "auto"),
        default=(),
        metavar="REPAIR",
        help="restore what averaging shrinks, one repair after the other: norms and gram need no data; "
        "moments, rescale and router are calibrated on --dataset; auto (norms, gram, moments) stands alone, and is "
        "tested first, as in `evaluate`. With data, one model is loaded",
    )
    merge.add_argument(
        "--force", action="store_true", help="merge even if the verdict calls the experts of a layer unrelated"
    )
    add_allowed(merge)
    merge.add_argument(
        "--vocabulary",
        choices=get_args(Vocabulary),
        help="of models with other numbers of tokens, of which one extends the other: keep the tokens that all have, "
        "or all; the result has the tokenizer and the settings of the model that has these",
    )
    add_output(merge, "folder of the merge")
    add_writing(merge)
    add_matching(merge, ", and nothing where all is in one order; none matches nothing")
    add_data(
        merge,
        "train",
        "examples for --repair, drawn at random; as many, of the split, as were given to `evaluate` give the model "
        "that it measured",
        required=False,
    )
    add_loading(merge)
    add_hub(merge)


def run(options: argparse.Namespace) -> CommandResult | None:
    """Align if need be, merge, write, and report the distances."""
    from hf_moe_lmc.aligner import MoeAligner, align_unless_in_order, check_merge, plan_merge
    from hf_moe_lmc.alignment import Resources, keep_freed_memory, processes

    if options.t and options.shares:
        raise UsageError("--t and --shares both set the weights of the two models; give one of them")
    keep_freed_memory()
    aligner = MoeAligner.from_pretrained(options.reference, *options.other, **hub_options(options))
    keywords = _keywords(aligner, options)
    alignments = [load_alignment(name, options) for name in options.alignment or ()]
    if options.dry_run:
        plan = plan_merge(aligner, alignments or alignment_config(options), **keywords)
        return describe_plan(plan, options.output)
    check_merge(aligner, **keywords)
    if alignments:
        alignment = alignments[0] if len(alignments) == 1 else None
        aligner.merge(alignments, **keywords)
    else:
        resources = Resources(options.device, options.memory)
        alignment = align_unless_in_order(aligner.models, alignment_config(options), resources)
        # These weights were aligned a moment ago.
        aligner.merge(alignment or "none", **keywords | {"allow_other_weights": True})
    if not processes().is_main_process:
        return None
    if alignment is None:
        as_is = (
            "Averaged as they are. " if options.expert_order == "none" else "In one order already: nothing matched. "
        )
        noted = "" if options.alignment else as_is
        return describe_output(options.output, aligner.models.texts, noted)
    return describe_alignment(alignment, options.other, options.output, aligner.models.texts)


def _keywords(aligner: "MoeAligner", options: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `MoeAligner.merge`."""
    from hf_moe_lmc.errors import BadInputError
    from hf_moe_lmc.merging import REPAIRS, needs_data

    repairs: Any = tuple(options.repair)
    if "auto" in repairs:
        if len(repairs) > 1:
            raise BadInputError("--repair auto chooses among all repairs; give it alone, or only the others")
        repairs = "auto"
    keywords: dict[str, Any] = {
        "t": options.t[0] if options.t and len(options.t) == 1 else options.t,
        "shares": options.shares,
        "extrapolate": options.extrapolate,
        "output": options.output,
        "repairs": repairs,
        "layout": options.layout,
        "quantise": options.quantise,
        "dtype": torch_dtype(options.dtype),
        "overwrite": options.overwrite,
        "allow_other_weights": options.allow_other_weights,
        "force": options.force,
        "allow_difference": options.allow_difference,
        "vocabulary": options.vocabulary,
        "device": options.device,
        "memory": options.memory,
    }
    if repairs == "auto" or needs_data(repairs):
        if not options.dataset:
            free = " and ".join(name for name, method in REPAIRS.items() if not method.needs_data)
            raise BadInputError(f"--repair needs calibration data: give --dataset; {free} need none")
        if not options.dry_run:
            keywords["calibration"] = calibration_data(aligner, options)
    return keywords | load_options(options)
