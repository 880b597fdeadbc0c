"""Arguments that several commands take."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .answer import Answer

if TYPE_CHECKING:
    from hf_moe_lmc.alignment import Alignment, AlignmentConfig, MutualAlignment, OutputOptions, Plan

MODEL = "a folder, or org/repository or org/repository@revision on the Hub"
DTYPES = ("float32", "bfloat16", "float16", "float64")


Run = Callable[[argparse.Namespace], Answer | None]
"""Runs a command; None of a process that leaves the talking to another."""


def add_command(
    commands: "argparse._SubParsersAction[Any]", name: str, run: Run, summary: str, description: str
) -> argparse.ArgumentParser:
    """A command without arguments of its own."""
    command = commands.add_parser(name, help=summary, description=description)
    command.set_defaults(run=run)
    command.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        default=argparse.SUPPRESS,
        help="YAML file of arguments, such as `expert-order: joint`; what the command line says wins",
    )
    return command


def add_pair(command: argparse.ArgumentParser) -> None:
    """The two models that most commands are about."""
    command.add_argument("reference", metavar="REFERENCE", help=MODEL)
    command.add_argument("other", metavar="OTHER", help=MODEL)


def add_output(command: argparse.ArgumentParser, what: str) -> None:
    """Where the result goes, and what to say before it is computed."""
    command.add_argument("-o", "--output", metavar="FOLDER", required=True, help=f"{what}; must be new or empty")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier output of this package")
    command.add_argument("--dry-run", action="store_true", help="only say what would be read and written")


def add_writing(command: argparse.ArgumentParser) -> None:
    """How a checkpoint is written."""
    command.add_argument(
        "--layout",
        choices=("kept", "original", "fused"),
        default="kept",
        help="keys and shards as the input has them, as Transformers saves by default, or under module names "
        "(default: kept)",
    )
    command.add_argument("--dtype", choices=DTYPES, help="of all floating-point tensors (default: as the input)")
    command.add_argument(
        "--allow-other-weights",
        action="store_true",
        help="apply the alignment to weights that it was not made for, such as another fine-tune",
    )


def add_matching(command: argparse.ArgumentParser) -> None:
    """How experts and units are matched."""
    command.add_argument(
        "--expert-order",
        choices=("auto", "units", "gate", "gram", "sketch", "joint"),
        default="auto",
        help="match experts not at all (units), by router rows, by Gram matrices or a random sketch of them, exactly "
        "(joint); auto takes router rows where they decide clearly, and else joint within a budget (default: auto)",
    )
    command.add_argument(
        "--balance-scales", action="store_true", help="match as if units, routers and experts that may be rescaled were"
    )


def add_resources(command: argparse.ArgumentParser) -> None:
    """Where layers are matched, and within how much memory."""
    command.add_argument(
        "--device",
        help="where layers are matched, such as cpu or cuda:1 (default: the GPU, where there is one with room for the "
        "largest layer, else the CPU)",
    )
    command.add_argument(
        "--memory",
        metavar="SIZE",
        type=size,
        help="of one layer of both models and what is computed from it, such as 4GB or 512MiB; refuses a layer that "
        "needs more (default: no limit)",
    )


def size(text: str) -> int:
    """Bytes of a size such as 4GB or 512MiB."""
    from accelerate.utils import convert_file_size_to_int

    return convert_file_size_to_int(text)


def describe_plan(plan: "Plan") -> Answer:
    """What `--dry-run` says."""
    return Answer(plan.text, asdict(plan))


def describe_alignment(alignment: "Alignment", output: str) -> Answer:
    """What was achieved, and where it is."""
    text, figures = _achieved(alignment)
    return Answer(f"{text}Written to {output}\n", {"output": output} | figures)


def describe_alignments(found: "MutualAlignment", names: Sequence[str], output: str) -> Answer:
    """The same of several models, called by their `names`."""
    achieved = [_achieved(alignment) for alignment in found.alignments]
    return Answer(
        "".join(f"{name}: {text}" for name, (text, _) in zip(names, achieved, strict=True))
        + f"distance of all pairs of models: {found.reference_distance:.4g} with all aligned to the first, "
        f"{found.distance:.4g} with all aligned to one another\nWritten to {output}\n",
        {
            "output": output,
            "reference_distance": found.reference_distance,
            "distance": found.distance,
            "others": [{"model": name} | figures for name, (_, figures) in zip(names, achieved, strict=True)],
        },
    )


def _achieved(alignment: "Alignment") -> tuple[str, dict[str, Any]]:
    """Lines and JSON values."""
    from hf_moe_lmc.hub import layer_figures

    verdict = alignment.verdict()
    said = f"{verdict.text()}\n" if verdict else ""
    return f"{alignment.summary()}\n{said}", {
        "verdict": verdict.to_json() if verdict else None,
        "layers": [asdict(layer) for layer in layer_figures(alignment)],
    }


def alignment_config(options: argparse.Namespace) -> "AlignmentConfig":
    """How to match, out of the parsed arguments."""
    from hf_moe_lmc.alignment import AlignmentConfig

    return AlignmentConfig(options.expert_order, options.balance_scales)


def output_options(options: argparse.Namespace) -> "OutputOptions":
    """How a checkpoint is to be written, out of the parsed arguments."""
    import torch

    from hf_moe_lmc.alignment import OutputOptions

    return OutputOptions(options.layout, getattr(torch, options.dtype) if options.dtype else None, options.overwrite)
