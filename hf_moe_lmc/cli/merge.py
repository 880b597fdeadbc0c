"""`hf-moe-lmc merge`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from .data_arguments import add_data, add_loading, calibration_of, examples_of, loaded, source_of
from .kept_memory import keep_freed_memory

if TYPE_CHECKING:
    from hf_moe_lmc.alignment import Alignment, OpenedModel
    from hf_moe_lmc.connectivity import CalibratedRepairs


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
    repairs = merge.add_mutually_exclusive_group()
    repairs.add_argument(
        "--keep-norms",
        action="store_true",
        help="give units and router rows the norms back that averaging takes from them; needs no data",
    )
    repairs.add_argument(
        "--repair",
        nargs="+",
        choices=("norms", "rescale", "consensus", "preactivations", "router", "refit", "auto"),
        metavar="REPAIR",
        help="repairs on calibration data, one after the other: norms (as --keep-norms), rescale, consensus, "
        "preactivations, router, refit; or auto alone, which chooses as `evaluate` does. Loads one model",
    )
    add_output(merge, "folder of the merge")
    add_writing(merge)
    add_matching(merge)
    add_data(
        merge,
        "train",
        "examples for --repair, the first ones; as many, of the split, as were given to `evaluate` give the model that "
        "it measured",
        required=False,
    )
    add_loading(merge)


def run(options: argparse.Namespace) -> Answer | None:
    """Align if need be, merge and write."""
    from hf_moe_lmc.alignment import (
        Alignment,
        align_opened,
        check_pair,
        merge_opened,
        open_checkpoint,
        plan_writing,
    )
    from hf_moe_lmc.alignment.processes import processes
    from hf_moe_lmc.alignment.stream import read_paths
    from hf_moe_lmc.checkpoints import check_output
    from hf_moe_lmc.hub import write_card

    keep_freed_memory()
    how = output_options(options)
    reference, other = open_checkpoint(options.reference), open_checkpoint(options.other)
    if options.dry_run:
        return describe_plan(plan_writing(reference, other, len(options.t), options.output, how))
    alignment = Alignment.from_pretrained(options.alignment) if options.alignment else alignment_config(options)
    repaired = None
    if options.repair:
        _check_repair(options)
        check_pair(reference, other)
        check_output(Path(options.output), read_paths(reference, other), options.overwrite)
        alignment = alignment if isinstance(alignment, Alignment) else align_opened(reference, other, alignment)
        repaired = _repaired(reference, other, alignment, options)
    alignment = merge_opened(
        reference,
        other,
        options.output,
        alignment,
        options.t[0] if len(options.t) == 1 else options.t,
        how,
        options.allow_other_weights,
        options.keep_norms,
        repaired,
    )
    if not processes().is_main_process:
        return None
    root = Path(options.output)
    for folder in [root] if len(options.t) == 1 else sorted(root.glob("t-*")):
        write_card(folder, alignment)
    return describe_alignment(alignment, options.output)


def _check_repair(options: argparse.Namespace) -> None:
    from hf_moe_lmc.errors import BadInputError

    if "auto" in options.repair and len(options.repair) > 1:
        raise BadInputError("--repair auto chooses all repairs; name no others beside it")
    if not options.dataset:
        raise BadInputError("--repair needs calibration data: give --dataset, or --keep-norms, which needs none")


def _repaired(
    reference: "OpenedModel", other: "OpenedModel", alignment: "Alignment", options: argparse.Namespace
) -> "CalibratedRepairs":
    """The repairs that the options ask for, calibrated."""
    from hf_moe_lmc.connectivity import calibrate_repairs

    model = loaded(reference, options)
    calibration = calibration_of(examples_of(model, options, options.calibration_examples), options)
    repairs = "auto" if "auto" in options.repair else options.repair
    return calibrate_repairs(
        model, other.tensors, alignment, options.t, repairs, calibration, source=source_of(options)
    )
