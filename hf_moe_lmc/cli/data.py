"""Data for evaluation and calibration, and the way a model that sees it is held."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .arguments import at_least

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel

    from hf_moe_lmc.aligner import MoeAligner
    from hf_moe_lmc.connectivity import CalibrationData
    from hf_moe_lmc.connectivity.data import Examples

CALIBRATION_EXAMPLES = 32


def add_data(command: argparse.ArgumentParser, split: str, why: str, required: bool = True) -> Any:
    """The source of examples; `why` some of them are for calibration."""
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
    data.add_argument(
        "--text-column",
        metavar="NAME",
        help="column of the text, or of conversations for the tokenizer's chat template (default: text, content, "
        "messages or conversations)",
    )
    data.add_argument("--length", type=at_least(2), default=512, help="tokens of a block or a sequence (default: 512)")
    data.add_argument(
        "--calibration-examples",
        type=at_least(0),
        default=CALIBRATION_EXAMPLES,
        help=f"{why} (default: {CALIBRATION_EXAMPLES})",
    )
    data.add_argument("--batch-size", type=at_least(1), default=8, help="examples of a batch, per process (default: 8)")
    return data


def add_loading(command: argparse.ArgumentParser) -> None:
    """The way a model is held in memory."""
    command.add_argument("--device-map", help="'auto' spreads the model over all devices, memory and disk")
    command.add_argument("--experts-implementation", help="of Transformers: eager, grouped_mm, batched_mm")


def load_options(options: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `LoadOptions`, out of the parsed arguments."""
    given = {name: getattr(options, name) for name in ("device_map", "experts_implementation")}
    return {name: value for name, value in given.items() if value}


def examples_of(aligner: "MoeAligner", options: argparse.Namespace, number: int | None) -> "Examples":
    """So many examples for the models of `aligner`; all for None."""
    from hf_moe_lmc.connectivity.data import examples_for, load_rows, processor_of

    reference, model = aligner.models.reference, cast("PreTrainedModel", aligner.models.reference.model)
    rows = load_rows(options.dataset, options.dataset_config, options.split, options.dataset_revision)
    processor = processor_of(model, reference.paths[0])
    return examples_for(
        model, rows, processor, length=options.length, max_examples=number, text_column=options.text_column
    )


def calibration_data(
    aligner: "MoeAligner", options: argparse.Namespace, examples: "Examples | None" = None
) -> "CalibrationData":
    """Two or more batches of the examples that are set apart for calibration, and where they come from."""
    from hf_moe_lmc.connectivity import CalibrationData

    if examples is None:
        examples = examples_of(aligner, options, options.calibration_examples)
    return CalibrationData(list(_batches(examples, options)), _source(options))


def _batches(examples: "Examples", options: argparse.Namespace) -> "DataLoader[Any]":
    """Batches of the first examples, those that are set apart for calibration.

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


def _source(options: argparse.Namespace) -> dict[str, str | int]:
    """The options that say where calibration data comes from; local files are called by the last part of their path."""
    names = (
        "dataset",
        "dataset_config",
        "dataset_revision",
        "split",
        "text_column",
        "length",
        "calibration_examples",
        "batch_size",
    )
    given = {name.replace("_", "-"): value for name in names if (value := getattr(options, name)) is not None}
    path = Path(options.dataset)
    return given | ({"dataset": path.name} if path.exists() else {})
