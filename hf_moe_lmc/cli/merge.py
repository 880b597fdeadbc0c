"""`hf-moe-lmc merge`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .answer import Answer
from .arguments import (
    MODEL,
    add_command,
    add_matching,
    add_output,
    add_resources,
    add_writing,
    alignment_config,
    describe_alignment,
    describe_alignments,
    describe_plan,
    output_options,
)
from .data_arguments import add_data, add_loading, calibration_of, examples_of, loaded, source_of
from .failures import UsageError
from .kept_memory import keep_freed_memory

if TYPE_CHECKING:
    from hf_moe_lmc.alignment import Alignment, MutualAlignment, OpenedModel
    from hf_moe_lmc.connectivity import CalibratedRepairs

OF_PAIRS = ("alignment", "t", "keep_norms", "repair", "allow_other_weights")
"""Options that mean nothing where there are several others."""


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `merge`."""
    merge = add_command(
        commands,
        "merge",
        run,
        "merge checkpoints, aligned: two along the straight line between them, or several",
        "Write (1 - t) REFERENCE + t (OTHER, aligned) to a new folder: an ordinary checkpoint, with the "
        "tokenizer and the settings of REFERENCE. Layer by layer, so both may be larger than memory. With several "
        "OTHERs, their mean with REFERENCE, weighted by --weights: all are aligned to REFERENCE and then to one "
        "another, and memory holds one layer of every model.",
    )
    merge.add_argument("reference", metavar="REFERENCE", help=MODEL)
    merge.add_argument("other", metavar="OTHER", nargs="+", help="the same; one or more")
    merge.add_argument(
        "--alignment", metavar="FOLDER", help="a saved alignment, or its repository on the Hub (default: align first)"
    )
    merge.add_argument(
        "--t",
        type=float,
        nargs="+",
        help="0 is REFERENCE, 1 is OTHER; several make one folder t-... each, in one pass (default: 0.5)",
    )
    merge.add_argument(
        "--weights",
        type=float,
        nargs="+",
        metavar="W",
        help="with several OTHERs: a number for REFERENCE and one for each OTHER, in any unit (default: all the same)",
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
        choices=("norms", "gram", "moments", "rescale", "router", "auto"),
        metavar="REPAIR",
        help="repairs, one after the other: norms (as --keep-norms) and gram without data, moments, rescale and "
        "router on calibration data; or auto alone, which chooses as `evaluate` does. Loads one model",
    )
    add_output(merge, "folder of the merge")
    add_writing(merge)
    add_matching(merge)
    add_resources(merge)
    add_data(
        merge,
        "train",
        "examples for --repair, the first ones; as many, of the split, as were given to `evaluate` give the model that "
        "it measured",
        required=False,
    )
    add_loading(merge)


def run(options: argparse.Namespace) -> Answer | None:
    """Align if need be, merge, write, and say what was achieved."""
    from hf_moe_lmc.alignment import open_checkpoint, plan_writing

    _check(options)
    keep_freed_memory()
    if options.dry_run:
        reference, *others = (open_checkpoint(name) for name in (options.reference, *options.other))
        outputs = len(options.t or [0])
        return describe_plan(plan_writing(reference, others, outputs, options.output, output_options(options)))
    return _merge_several(options) if len(options.other) > 1 else _merge_pair(options)


def _check(options: argparse.Namespace) -> None:
    """Raise `UsageError` or `BadInputError` unless the options fit one another."""
    from hf_moe_lmc.errors import BadInputError

    several = len(options.other) > 1
    for name in OF_PAIRS if several else ("weights",):
        if getattr(options, name):
            number = "two models" if several else "three models and more; two take --t"
            raise UsageError(f"--{name.replace('_', '-')} is for {number}; see 'hf-moe-lmc merge --help'")
    if options.repair and "auto" in options.repair and len(options.repair) > 1:
        raise BadInputError("--repair auto chooses all repairs; name no others beside it")
    if options.repair and not options.dataset:
        from hf_moe_lmc.connectivity.repairs import DATA_FREE

        if not set(options.repair) <= DATA_FREE.keys():
            free = " and ".join(DATA_FREE)
            raise BadInputError(f"--repair needs calibration data: give --dataset; {free} need none")


def _merge_pair(options: argparse.Namespace) -> Answer | None:
    from hf_moe_lmc.alignment import Alignment, Resources, align_opened, check_pair, merge_opened, open_checkpoint
    from hf_moe_lmc.alignment.stream import read_paths
    from hf_moe_lmc.checkpoints import check_output

    points, output = options.t or [0.5], output_options(options)
    resources = Resources(options.device, options.memory)
    reference, other = open_checkpoint(options.reference), open_checkpoint(options.other[0])
    alignment = Alignment.from_pretrained(options.alignment) if options.alignment else alignment_config(options)
    repaired = None
    if options.repair:
        check_pair(reference, other)
        check_output(Path(options.output), read_paths(reference, other), options.overwrite)
        if not isinstance(alignment, Alignment):
            alignment = align_opened(reference, other, alignment, resources=resources)
        repaired = _repaired(reference, other, alignment, points, options)
    alignment = merge_opened(
        reference,
        other,
        options.output,
        alignment,
        points[0] if len(points) == 1 else points,
        output,
        options.allow_other_weights,
        options.keep_norms,
        repaired,
        resources,
    )
    root = Path(options.output)
    folders = [root] if len(points) == 1 else sorted(root.glob("t-*"))
    return describe_alignment(alignment, options.output) if _write_cards(folders, alignment) else None


def _repaired(
    reference: "OpenedModel",
    other: "OpenedModel",
    alignment: "Alignment",
    points: Sequence[float],
    options: argparse.Namespace,
) -> "CalibratedRepairs":
    """The repairs that the options ask for, calibrated."""
    from hf_moe_lmc.connectivity import calibrate_repairs

    model, calibration, source = loaded(reference, options), [], None
    if options.dataset:
        calibration = calibration_of(examples_of(model, options, options.calibration_examples), options)
        source = source_of(options)
    repairs = "auto" if "auto" in options.repair else options.repair
    return calibrate_repairs(model, other.tensors, alignment, points, repairs, calibration, source=source)


def _merge_several(options: argparse.Namespace) -> Answer | None:
    from hf_moe_lmc.alignment import Resources, merge_many_checkpoints

    found = merge_many_checkpoints(
        [options.reference, *options.other],
        options.output,
        alignment_config(options),
        options.weights,
        output_options(options),
        Resources(options.device, options.memory),
    )
    written = _write_cards([Path(options.output)], found)
    return describe_alignments(found, options.other, options.output) if written else None


def _write_cards(folders: Sequence[Path], alignment: "Alignment | MutualAlignment") -> bool:
    """Write the card of every merge; whether this is the process that does."""
    from hf_moe_lmc.alignment.processes import processes
    from hf_moe_lmc.hub import write_card

    if not processes().is_main_process:
        return False
    for folder in folders:
        write_card(folder, alignment)
    return True
