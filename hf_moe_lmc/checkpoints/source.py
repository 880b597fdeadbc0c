"""A local folder or a Hub repository -> a folder of files."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_moe_lmc.errors import BadInputError, HubError

REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")

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


def find_source(name: str | Path, options: HubOptions | None = None, weights: bool = True) -> Source:
    """The files of `name`: a folder, or `org/repository[@revision]` on the Hub, all files of one commit.

    Without `weights`, only the small files are downloaded.

    Raises:
        BadInputError: there is no such folder, and it cannot be the name of a repository.
        HubError: the Hub does not give it.
    """
    options = HubOptions() if options is None else options
    subfolder = options.get("subfolder", "")
    if Path(name).is_dir():
        return Source(str(name), _within(Path(name), subfolder))
    repository, _, revision = str(name).partition("@")
    if not REPOSITORY.fullmatch(repository) or ".." in repository:
        raise BadInputError(f"{name} is neither a folder nor the name of a repository on the Hub")
    revision = revision or options.get("revision") or "main"
    folder, commit = _download(repository, revision, options, COMPANIONS + ABOUT + WEIGHTS if weights else COMPANIONS)
    return Source(str(name), _within(folder, subfolder), commit)


def _within(folder: Path, subfolder: str) -> Path:
    inside = folder / subfolder
    if not inside.is_dir():
        raise BadInputError(f"{folder} has no folder {subfolder}")
    return inside


def _download(
    repository: str, revision: str, options: HubOptions, patterns: tuple[str, ...]
) -> tuple[Path, str | None]:
    token, subfolder = options.get("token"), options.get("subfolder", "")
    local = bool(options.get("local_files_only"))
    wanted = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in patterns]
    try:
        # One commit for all files, even if the branch moves meanwhile.
        commit = revision if local else HfApi(token=token).model_info(repository, revision=revision, timeout=60).sha
        folder = snapshot_download(
            repository,
            revision=commit,
            token=token,
            cache_dir=options.get("cache_dir"),
            local_files_only=local,
            allow_patterns=wanted,
        )
    except GatedRepoError:
        raise HubError(f"{repository} is gated; ask for access on its page and log in (hf auth login)") from None
    except RepositoryNotFoundError:
        raise HubError(
            f"{repository} is not on the Hub, or is private; check the name, log in (hf auth login)"
        ) from None
    except RevisionNotFoundError:
        raise HubError(f"{repository} has no revision {revision}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise HubError(f"{repository}@{revision} is not in the cache, and the network may not be used") from None
    except EntryNotFoundError as error:
        raise HubError(f"{repository}@{revision}: {error}") from None
    except HfHubHTTPError as error:
        raise HubError(f"the Hub refused {repository}@{revision}: {error}; try again later") from None
    # A snapshot's folder is called like its commit.
    return Path(folder), Path(folder).name
