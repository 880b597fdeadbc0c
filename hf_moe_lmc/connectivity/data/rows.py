"""Rows of a dataset, from the Hub or from local files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import HTTPError

from hf_moe_lmc.errors import BadInputError, HubError

if TYPE_CHECKING:
    from datasets import Dataset

# Suffix of a file -> the builder of `datasets` that reads it.
BUILDERS = {".txt": "text", ".md": "text", ".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
BUILDERS |= dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"), "imagefolder")


def load_rows(source: str | Path, config: str | None = None, split: str = "test") -> "Dataset":
    """The rows of `source`.

    Args:
        source: a local file (text: one row per document; parquet, json, jsonl, csv), a local folder of such files or of
            images (one folder per class, perhaps below one per split), or the id of a dataset on the Hub.
        config, split: of a dataset on the Hub; a local folder is split only where it has a folder of that name.

    Raises:
        BadInputError: there is no such config or split, the format is not known, or the data is empty or damaged.
        HubError: the Hub does not give it.
    """
    from datasets import disable_progress_bars, load_dataset  # heavy, and needed only where data is read
    from datasets.exceptions import DatasetsError

    disable_progress_bars()
    path = Path(source)
    try:
        if path.exists():
            builder, files = _local(path, split)
            # A text file is one document, not one row per line.
            options: dict[str, Any] = {"sample_by": "document"} if builder == "text" else {}
            rows = load_dataset(builder, data_files=files, split="train", **options)
        else:
            rows = load_dataset(str(source), config, split=split)
    except (HTTPError, DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        # Of a name on the Hub, only what it lists can be wrong: a config or a split that it does not have.
        kind = BadInputError if path.exists() or isinstance(error, ValueError) else HubError
        raise kind(f"dataset {source} (config {config}, split {split}) cannot be read: {reason}") from error
    if len(rows) == 0:
        raise BadInputError(f"dataset {source} (config {config}, split {split}) is empty")
    return rows


def _local(path: Path, split: str) -> tuple[str, list[str]]:
    if path.is_dir():
        path = path / split if (path / split).is_dir() else path
        files = sorted(file for file in path.rglob("*") if file.is_file())
    else:
        files = [path]
    suffixes = {file.suffix.lower() for file in files}
    builders = {BUILDERS[suffix] for suffix in suffixes if suffix in BUILDERS}
    if len(builders) != 1:
        found = ", ".join(sorted(suffixes)) or "nothing"
        raise BadInputError(f"{path} holds {found}; give files of one kind: {', '.join(BUILDERS)}")
    (builder,) = builders
    return builder, [str(file) for file in files if BUILDERS.get(file.suffix.lower()) == builder]
