"""Arguments that several commands take, and the values that are made of them."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from hf_moe_lmc.names import Dtype, ExpertOrder, Layout, Quantisation

from .results import CommandResult

if TYPE_CHECKING:
    from hf_moe_lmc.alignment import Alignment, AlignmentConfig
    from hf_moe_lmc.checkpoints import HubOptions

MOST = 2**31 - 1
MODEL = "a folder, or org/repository or org/repository@revision on the Hub"

PLOTS = (".png", ".svg", ".pdf", ".jpg", ".webp")

Run = Callable[[argparse.Namespace], CommandResult | None]
"""Runs a command; None where another process reports."""


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
        help="YAML file of arguments, such as `expert-order: joint`; the command line wins",
    )
    return command


def add_pair(command: argparse.ArgumentParser) -> None:
    """The two models that most commands are about."""
    command.add_argument("reference", metavar="REFERENCE", help=MODEL)
    command.add_argument("other", metavar="OTHER", help=MODEL)


def add_hub(command: argparse.ArgumentParser) -> None:
    """Access to the Hub, of all models of a command."""
    hub = command.add_argument_group("Hub")
    add_token(hub)
    hub.add_argument("--cache-dir", metavar="FOLDER", help="of downloads (default: that of the Hub's client)")
    hub.add_argument("--local-files-only", action="store_true", help="use the cache only, never the network")


def add_token(command: Any) -> None:
    """The token of the Hub."""
    command.add_argument("--token", help="of the Hub (default: that of `hf auth login` or HF_TOKEN)")


def add_output(command: argparse.ArgumentParser, result: str) -> None:
    """The folder of the result, and the needs of the work before it starts."""
    command.add_argument("-o", "--output", metavar="FOLDER", required=True, help=f"{result}; must be new or empty")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier output of this package")
    command.add_argument("--dry-run", action="store_true", help="only print what would be read, written and needed")


def add_writing(command: argparse.ArgumentParser) -> None:
    """The form of a written checkpoint."""
    command.add_argument(
        "--layout",
        choices=get_args(Layout),
        default="kept",
        help="keys and shards as the input has them, as Transformers saves by default, or under module names "
        "(default: kept)",
    )
    command.add_argument(
        "--dtype", choices=get_args(Dtype), help="of all floating-point tensors (default: as the input)"
    )
    command.add_argument(
        "--quantise",
        choices=get_args(Quantisation),
        help="store linears and experts, routers aside, in blocks of 128 x 128 with a scale each, as DeepSeek-V3 and "
        "Qwen3-FP8; for other formats see llm-compressor (default: not quantised)",
    )
    command.add_argument(
        "--allow-other-weights",
        action="store_true",
        help="apply the alignment to weights that it was not made for, such as another fine-tune",
    )


def add_allowed(command: argparse.ArgumentParser) -> None:
    """The differences that a user takes for harmless."""
    command.add_argument(
        "--allow-difference",
        nargs="+",
        default=(),
        metavar="FIELD",
        help="of config.json, or a file of the tokenizer, that differs and would be refused, but that you know to do "
        "no harm",
    )


def add_matching(command: argparse.ArgumentParser, or_nothing: str = "") -> None:
    """The way to match experts and units, the device, and the memory; and in words what it means to match nothing."""
    command.add_argument(
        "--expert-order",
        choices=[order for order in get_args(ExpertOrder) if order != "none" or or_nothing],
        default="auto",
        help="match experts by router rows (gate), by Gram matrices (gram), exactly (joint), or only units (units); "
        f"auto takes the closest of these within a budget{or_nothing} (default: auto)",
    )
    command.add_argument(
        "--device",
        help="where layers are matched, such as cpu or cuda:1 (default: the GPU, where there is one with room for the "
        "largest layer, else the CPU)",
    )
    command.add_argument(
        "--memory",
        metavar="SIZE",
        type=size,
        help="for one layer of both models and all that is computed from it, such as 4GB or 512MiB; refuses a layer "
        "that needs more (default: no limit)",
    )


def at_least(least: int) -> Callable[[str], int]:
    """The type of a whole number that is not less than `least`."""

    def whole_number(text: str) -> int:
        if (number := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{number} is less than {least}, the least allowed")
        if number > MOST:
            raise argparse.ArgumentTypeError(f"{number} is more than {MOST}, the most allowed")
        return number

    return whole_number


def plot_file(text: str) -> Path:
    """The file of a plot, in a folder that exists and a format that matplotlib writes."""
    file = Path(text)
    if file.suffix.lower() not in PLOTS:
        raise argparse.ArgumentTypeError(f"{text} must end in one of {', '.join(PLOTS)}")
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {file.parent}; make it first")
    return file


def size(text: str) -> int:
    """Bytes of a size such as 4GB or 512MiB."""
    from accelerate.utils import convert_file_size_to_int

    try:
        number = convert_file_size_to_int(text)
    except (ValueError, OverflowError):
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write it as 4GB or 512MiB")
    return number


def hub_options(options: argparse.Namespace) -> "HubOptions":
    """Access to the Hub, out of the parsed arguments."""
    given = {"token": options.token, "cache_dir": options.cache_dir, "local_files_only": options.local_files_only}
    return {name: value for name, value in given.items() if value}  # type: ignore[return-value]


def alignment_config(options: argparse.Namespace) -> "AlignmentConfig":
    """The settings of matching, out of the parsed arguments."""
    from hf_moe_lmc.alignment import AlignmentConfig

    return AlignmentConfig(options.expert_order)


def load_alignment(name: str, options: argparse.Namespace) -> "Alignment":
    """The alignment in a folder, which the output stays out of, or on the Hub."""
    from hf_moe_lmc.alignment import Alignment
    from hf_moe_lmc.checkpoints import check_place

    if os.path.isdir(name) and hasattr(options, "output"):
        check_place(Path(os.path.abspath(options.output)), [Path(name)])
    return Alignment.from_pretrained(name, **hub_options(options))


def torch_dtype(name: str | None) -> Any:
    """The dtype of this name; None for None."""
    import torch

    return getattr(torch, name) if name else None
