"""Rows of a dataset, from the Hub or from local files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError, HTTPError
from yaml import YAMLError

from hf_moe_lmc.checkpoints.hub_errors import hub_cause, hub_error
from hf_moe_lmc.errors import BadInputError, HubError

if TYPE_CHECKING:
    from datasets import Dataset

# Suffix of a file -> the builder of `datasets` that reads it.
BUILDERS = {".txt": "text", ".md": "text", ".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
BUILDERS |= dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"), "imagefolder")


def load_rows(
    source: str | Path, config: str | None = None, split: str = "test", revision: str | None = None
) -> "Dataset":
    """The rows of `source`.

    Args:
        source: a local file (text: one row per document; parquet, json, jsonl, csv), a local folder of such files or of
            images (one folder per class, perhaps below one per split), or the id of a dataset on the Hub.
        config: of a dataset on the Hub.
        split: of a dataset on the Hub, or a folder of that name in a local folder, if there is one.
        revision: of a dataset on the Hub: a branch, a tag or a commit (default: main).

    Raises:
        BadInputError: there is no such file, config or split, the format is not known, or the data is empty or damaged.
        HubError: the Hub does not give it.
    """
    from datasets import disable_progress_bars  # heavy, and needed only where data is read
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    disable_progress_bars()
    path = Path(source)
    given = {"config": config, "split": split, "revision": revision}
    name = f"dataset {source} ({', '.join(f'{key} {value}' for key, value in given.items() if value is not None)})"
    try:
        if not path.exists() and path.suffix.lower() in BUILDERS:
            raise HFValidationError  # the Hub need not be asked
        rows = _local(path, split) if path.exists() else _of_the_hub(str(source), config, split, revision)
    except HFValidationError:
        raise BadInputError(
            f"{str(source)!r} is neither a file, a folder nor the id of a dataset on the Hub; check the path"
        ) from None
    except (HTTPError, DatasetsError, OSError, ValueError, RuntimeError, YAMLError) as error:
        if cause := hub_cause(error):
            failure = hub_error(cause, f"dataset {source}", revision or "main")
            is_path = path.parent.is_dir()  # a mistyped one, perhaps
            raise type(failure)(f"no {str(source)!r} here, and {failure}" if is_path else str(failure)) from error
        kind = HubError if isinstance(error, DatasetNotFoundError) else BadInputError
        raise kind(f"{name} cannot be read: {_reason(error)}") from error
    if len(rows) == 0:
        raise BadInputError(f"{name} is empty; give data with at least one row")
    return rows


def _local(path: Path, split: str) -> "Dataset":
    from datasets import load_dataset

    builder, files = _files(path, split)
    # A text file is one document, not one row per line.
    options: dict[str, Any] = {"sample_by": "document"} if builder == "text" else {}
    return load_dataset(builder, data_files=files, split="train", **options)


def _of_the_hub(name: str, config: str | None, split: str, revision: str | None) -> "Dataset":
    from datasets import load_dataset_builder

    # Asked first: where the Hub fails, `datasets` takes what the cache holds, of whatever commit.
    if not constants.HF_HUB_OFFLINE:
        revision = HfApi().dataset_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT).sha
    builder = load_dataset_builder(name, config, revision=revision)
    if revision not in (None, builder.hash):
        raise ConnectionError(f"the cache holds commit {builder.hash} instead")
    builder.download_and_prepare()
    return cast("Dataset", builder.as_dataset(split))


def _reason(error: Exception) -> str:
    """The first two lines: what is wrong and, often, what there is instead."""
    from datasets.exceptions import DatasetGenerationError

    cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None
    lines = [line.strip() for line in str(cause or error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


def _files(path: Path, split: str) -> tuple[str, list[str]]:
    if path.is_dir():
        path = path / split if (path / split).is_dir() else path
        files = sorted(file for file in path.rglob("*") if file.is_file())
    else:
        files = [path]
    suffixes = {file.suffix.lower() for file in files}
    builders = {BUILDERS[suffix] for suffix in suffixes if suffix in BUILDERS}
    if len(builders) != 1:
        held = ", ".join(sorted(suffixes)) or "nothing"
        raise BadInputError(f"{path} holds {held}; give files of one kind: {', '.join(BUILDERS)}")
    (builder,) = builders
    return builder, [str(file) for file in files if BUILDERS.get(file.suffix.lower()) == builder]
