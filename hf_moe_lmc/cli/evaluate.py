"""`hf-moe-lmc evaluate`."""

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from hf_moe_lmc.names import Repair, Variant

from .arguments import (
    add_allowed,
    add_command,
    add_hub,
    add_pair,
    at_least,
    hub_options,
    load_alignment,
    size,
    torch_dtype,
)
from .data import add_data, add_loading, calibration_data, examples_of, load_options
from .results import CommandResult

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from hf_moe_lmc.aligner import MoeAligner
    from hf_moe_lmc.connectivity import CalibrationData


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `evaluate`."""
    evaluate = add_command(
        commands,
        "evaluate",
        run,
        "measure the loss along the path between two checkpoints, as they are, aligned, repaired and in controls",
        "Measure loss, accuracy and routing on the straight line between two checkpoints. One model is "
        "loaded; the other is read tensor by tensor. Under `accelerate launch` the processes divide the data.",
    )
    add_pair(evaluate)
    evaluate.add_argument("-o", "--output", type=Path, required=True, help="folder of the report; new or empty")
    evaluate.add_argument("--overwrite", action="store_true", help="replace an earlier report")
    evaluate.add_argument("--alignment", metavar="FOLDER", help="made by `align`; without it, aligns first")
    data = add_data(
        evaluate,
        "test",
        "examples that are set apart, and not evaluated on, to calibrate temperatures and repairs and to choose "
        "repairs; 0 leaves all that out",
    )
    data.add_argument("--max-examples", type=at_least(2), help="evaluate on so many examples (default: all)")
    evaluate.add_argument("--points", type=int, default=11, help="points of every path (default: 11)")
    evaluate.add_argument(
        "--variants",
        nargs="+",
        choices=get_args(Variant),
        default=("naive", "aligned"),
        help="which paths; naive is always there, all but aligned and units are controls (default: naive aligned)",
    )
    evaluate.add_argument(
        "--repair",
        nargs="+",
        choices=(*get_args(Repair), "auto"),
        default=("norms", "auto"),
        help="which repairs, each on every path; auto: norms, gram and moments, one after the other, where they "
        "lower the midpoint's loss on calibration examples that they were not calibrated on "
        "(default: norms auto)",
    )
    evaluate.add_argument(
        "--metrics",
        nargs="+",
        default=(),
        help="further figures at every point: expected_calibration_error, or a metric on the Hub",
    )
    evaluate.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: that of REFERENCE")
    add_loading(evaluate)
    evaluate.add_argument(
        "--memory",
        metavar="SIZE",
        type=size,
        default=0,
        help="such as 16GB: hold OTHER on the device or in host memory if it fits this, instead of reading it from "
        "disk at every point (default: 0, from disk)",
    )
    evaluate.add_argument(
        "--seed", type=at_least(0), default=0, help="of the random element and the bootstrap (default: 0)"
    )
    add_allowed(evaluate)
    add_hub(evaluate)


def run(options: argparse.Namespace) -> CommandResult | None:
    """Evaluate, print the table, write the report."""
    from hf_moe_lmc.aligner import MoeAligner
    from hf_moe_lmc.alignment import accelerator_of_all
    from hf_moe_lmc.checkpoints import check_output, output_folder
    from hf_moe_lmc.connectivity import points_of
    from hf_moe_lmc.connectivity.report import REPORT_FILES, REPORT_NAME

    points_of(options.points)
    given = (options.reference, options.other, options.alignment, options.dataset)
    inputs = [Path(name) for name in given if name and os.path.exists(name)]
    check_output(options.output, inputs, options.overwrite, REPORT_NAME, REPORT_FILES)
    aligner = MoeAligner.from_pretrained(options.reference, options.other, **hub_options(options))
    alignment = load_alignment(options.alignment, options) if options.alignment else None
    accelerator = accelerator_of_all()
    calibration, data = _data(aligner, options)
    report = aligner.evaluate(
        alignment,
        data,
        options.points,
        calibration=calibration,
        variants=options.variants,
        repairs=options.repair,
        metrics=_metrics(options.metrics),
        memory=options.memory,
        seed=options.seed,
        allow_difference=options.allow_difference,
        accelerator=accelerator,
        **({"dtype": torch_dtype(options.dtype)} if options.dtype else {}),
        **load_options(options),
    )
    if not accelerator.is_main_process:
        return None
    recipe = {"command": "evaluate", "at": time.time_ns()}  # nothing is gone on with
    with output_folder(options.output, recipe, inputs, 0, options.overwrite, REPORT_NAME, REPORT_FILES) as staged:
        report.save(staged.path)
    return CommandResult(f"{report.markdown()}\nWritten to {options.output}\n", report.to_json())


def _metrics(names: Any) -> list[Any]:
    if not names:
        return []  # `evaluate` is slow to import
    from hf_moe_lmc.connectivity.metrics import load_metric

    return [load_metric(name) for name in names]


def _data(aligner: "MoeAligner", options: argparse.Namespace) -> "tuple[CalibrationData, DataLoader[Any]]":
    """Data for calibration, and batches of the other examples."""
    from torch.utils.data import DataLoader, Subset

    from hf_moe_lmc.connectivity import CalibrationData
    from hf_moe_lmc.errors import BadInputError

    apart = options.calibration_examples
    number = None if options.max_examples is None else apart + options.max_examples
    examples = examples_of(aligner, options, number)
    if len(examples) < apart + 2:
        raise BadInputError(
            f"{options.dataset} gives {len(examples)} examples, of which {apart} are set apart for calibration; "
            "give more data, a smaller --length or fewer --calibration-examples"
        )
    data = DataLoader(Subset(examples, range(apart, len(examples))), batch_size=options.batch_size)
    return calibration_data(aligner, options, examples) if apart else CalibrationData(), data
