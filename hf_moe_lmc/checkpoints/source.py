"""A local folder or a Hub repository -> a folder of files."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash

from hf_moe_lmc.errors import BadInputError

from .hub_errors import BusyError, hub_access

# Seconds between attempts. huggingface_hub goes on with broken downloads itself; it gives up after six attempts that
# each wait ten seconds.
PAUSES = (1, 2)

# All that belongs to a model but its weights; copied as bytes into what is made of it.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "image_processor_config.json",
)
ABOUT = ("README.md",)  # read for the cards of what is made of it
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "adapter_config.json")


class HubOptions(TypedDict, total=False):
    """Keywords of `from_pretrained` that say where a checkpoint is."""

    revision: str | None
    subfolder: str
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool


@dataclass(frozen=True)
class Source:
    """Where a checkpoint came from.

    Args:
        name: folder or repository, as given.
        folder: its files.
        commit: of the repository; None for a local folder.
    """

    name: str
    folder: Path
    commit: str | None = None


def find_source(
    name: str | Path, options: HubOptions | None = None, files: tuple[str, ...] = COMPANIONS + ABOUT + WEIGHTS
) -> Source:
    """The files of `name`: a folder, or `org/repository[@revision]` on the Hub, all files of one commit.

    From the Hub, those that match a pattern of `files` are downloaded, unless they are cached.

    Raises:
        BadInputError: there is no such folder, and it cannot be the name of a repository.
        HubError: the Hub does not give it.
    """
    options = HubOptions() if options is None else options
    subfolder = options.get("subfolder", "")
    if str(name) and Path(name).is_dir():
        return Source(str(name), _within(Path(name), subfolder))
    repository, _, revision = str(name).partition("@")
    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise BadInputError(f"{str(name)!r} is neither a folder nor the name of a repository on the Hub") from None
    revision = revision or options.get("revision") or "main"
    folder, commit = _download_patiently(repository, revision, options, files)
    return Source(str(name), _within(folder, subfolder), commit)


def _within(folder: Path, subfolder: str) -> Path:
    inside = folder / subfolder
    if not inside.is_dir():
        raise BadInputError(f"{folder} has no folder {subfolder}")
    return inside


def _download_patiently(
    repository: str, revision: str, options: HubOptions, patterns: tuple[str, ...]
) -> tuple[Path, str | None]:
    for pause in PAUSES:
        try:
            return _download(repository, revision, options, patterns)
        except BusyError:
            time.sleep(pause)
    return _download(repository, revision, options, patterns)


def _download(
    repository: str, revision: str, options: HubOptions, patterns: tuple[str, ...]
) -> tuple[Path, str | None]:
    token, subfolder = options.get("token"), options.get("subfolder", "")
    local = bool(options.get("local_files_only")) or constants.HF_HUB_OFFLINE
    wanted = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in patterns]
    with hub_access(repository, revision, token=token):
        # Asked first, for snapshot_download would hide a refusal behind what is cached.
        listed = None if local else _listing(repository, revision, token)
        new = _not_cached(repository, listed, options.get("cache_dir")) if listed else []
        # One commit for all files, even if the branch moves meanwhile.
        folder = snapshot_download(
            repository,
            revision=revision,
            token=token,
            cache_dir=options.get("cache_dir"),
            local_files_only=local,
            allow_patterns=wanted,
        )
    # A snapshot's folder is called like its commit.
    commit = Path(folder).name
    if listed and listed.sha != commit:
        raise BusyError(f"{repository}@{revision} changed while it was opened; try again")
    if damaged := _drop_damaged(Path(folder), new):
        raise BusyError(
            f"what the Hub sent as {damaged[0]} of {repository}@{revision} is not what it lists; it was thrown away, "
            "try again later"
        )
    return Path(folder), commit


def _listing(repository: str, revision: str, token: str | bool | None) -> ModelInfo:
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    return HfApi(token=token).model_info(repository, revision=revision, timeout=timeout, files_metadata=True)


def _not_cached(repository: str, listed: ModelInfo, cache: str | Path | None) -> list[RepoSibling]:
    """The files of a commit that a download would fetch."""
    return [
        file
        for file in listed.siblings or []
        if not isinstance(try_to_load_from_cache(repository, file.rfilename, cache, listed.sha), str)
    ]


def _drop_damaged(folder: Path, listed: Sequence[RepoSibling]) -> list[str]:
    """Delete the files whose checksum is not the one that the Hub lists, so that they are fetched again; their names.

    huggingface_hub itself compares sizes only.

    Args:
        folder: a snapshot in the cache; files that it does not hold are passed over.
        listed: with the sha-256 of large files and the git blob of the others; a file without either is trusted.
    """
    damaged = [entry.rfilename for entry in listed if not _is_intact(folder / entry.rfilename, entry)]
    for name in damaged:
        (folder / name).resolve().unlink()  # in a cache of links, the content
        (folder / name).unlink(missing_ok=True)
    return damaged


def _is_intact(file: Path, entry: RepoSibling) -> bool:
    if not file.is_file():
        return True
    if entry.lfs:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest() == entry.lfs.sha256
    return entry.blob_id is None or git_hash(file.read_bytes()) == entry.blob_id
