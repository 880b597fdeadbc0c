"""Data for evaluation and calibration, and how the model that sees it is held."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel

    from hf_moe_lmc.alignment import LoadOptions, OpenedModel
    from hf_moe_lmc.connectivity.data import Examples

CALIBRATION_EXAMPLES = 32


def add_data(command: argparse.ArgumentParser, split: str, why: str, required: bool = True) -> Any:
    """Where examples come from; `why` some of them are for calibration."""
    data = command.add_argument_group("data")
    data.add_argument(
        "--dataset",
        required=required,
        help="a file (txt, parquet, json, csv), a folder of them or of images, or a Hub id",
    )
    data.add_argument("--dataset-config", metavar="NAME", help="configuration of a dataset on the Hub")
    data.add_argument(
        "--dataset-revision", metavar="NAME", help="branch, tag or commit of a dataset on the Hub (default: main)"
    )
    data.add_argument("--split", default=split, help=f"split of the dataset (default: {split})")
    data.add_argument("--length", type=int, default=512, help="tokens of a block or a sequence (default: 512)")
    data.add_argument(
        "--calibration-examples",
        type=int,
        default=CALIBRATION_EXAMPLES,
        help=f"{why} (default: {CALIBRATION_EXAMPLES})",
    )
    data.add_argument("--batch-size", type=int, default=8, help="examples of a batch, per process (default: 8)")
    return data


def add_loading(command: argparse.ArgumentParser) -> None:
    """How a model is held in memory."""
    command.add_argument("--device-map", help="'auto' spreads the model over all devices, memory and disk")
    command.add_argument("--experts-implementation", help="of Transformers: eager, grouped_mm, batched_mm")


def loaded(opened: "OpenedModel", options: argparse.Namespace, **given: str | None) -> "PreTrainedModel":
    """The model of a checkpoint, as the options say; `given` are further keywords of `LoadOptions`."""
    from hf_moe_lmc.alignment import load_model

    wanted = {name: getattr(options, name) for name in ("device_map", "experts_implementation")} | given
    return load_model(opened, cast("LoadOptions", {name: value for name, value in wanted.items() if value}))


def examples_of(model: "PreTrainedModel", options: argparse.Namespace, number: int | None) -> "Examples":
    """The first `number` examples for the model of `options.reference`; all for None."""
    from hf_moe_lmc.checkpoints import find_source
    from hf_moe_lmc.connectivity.data import examples_for, load_rows, processor_of

    rows = load_rows(options.dataset, options.dataset_config, options.split, options.dataset_revision)
    processor = processor_of(model, find_source(options.reference).folder)
    return examples_for(model, rows, processor, length=options.length, max_examples=number)


def calibration_of(examples: "Examples", options: argparse.Namespace) -> "DataLoader[Any]":
    """Two or more batches of the first examples, those that are set apart for calibration.

    Raises:
        BadInputError: there are not so many, or fewer than two.
    """
    from torch.utils.data import DataLoader, Subset

    from hf_moe_lmc.errors import BadInputError

    apart = options.calibration_examples
    if len(examples) < apart or apart < 2:
        raise BadInputError(
            f"{options.dataset} gives {len(examples)} examples, {apart} are wanted for calibration, and two at least "
            "are needed; give more data, a smaller --length or another number of --calibration-examples"
        )
    halves = min(options.batch_size, (apart + 1) // 2)
    return DataLoader(Subset(examples, range(apart)), batch_size=halves)


def source_of(options: argparse.Namespace) -> dict[str, str | int]:
    """The options that say where calibration data comes from; local files are called by the last part of their path."""
    names = ("dataset", "dataset_config", "dataset_revision", "split", "length", "calibration_examples", "batch_size")
    given = {name.replace("_", "-"): value for name in names if (value := getattr(options, name)) is not None}
    path = Path(options.dataset)
    return given | ({"dataset": path.name} if path.exists() else {})
