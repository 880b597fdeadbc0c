"""A local folder or a Hub repository -> a folder of files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_moe_lmc.errors import BadInputError, HubError

from .companions import COMPANIONS
from .download import HubOptions, Snapshot
from .shards import ADAPTER_NAME, INDEX_NAME, SINGLE_NAME, advice, shard_names

ABOUT = ("README.md", ADAPTER_NAME, INDEX_NAME)  # read, and not copied


@dataclass(frozen=True)
class Source:
    """Where a checkpoint came from.

    Args:
        name: folder or repository, as given.
        folder: its files.
        commit: of the repository; None for a local folder.
        listed: paths of the files that the Hub lists, downloaded or not; none for a local folder.
        options: that it was found with.
    """

    name: str
    folder: Path
    commit: str | None = None
    listed: tuple[str, ...] = field(default=(), repr=False)
    options: HubOptions = field(default_factory=HubOptions, repr=False)  # may hold a token


def find_source(name: str | Path, options: HubOptions | None = None, files: Sequence[str] | None = None) -> Source:
    """The files of `name`: a folder, or `org/repository[@revision]` on the Hub, all files of one commit.

    Args:
        name: of the folder or the repository.
        options: revision, subfolder, token, cache_dir, local_files_only.
        files: patterns of those that are downloaded, unless they are cached; None: all of a checkpoint.

    Raises:
        BadInputError: there is no such folder, and it cannot be the name of a repository.
        HubError: the Hub does not give it.
    """
    options = HubOptions() if options is None else options
    subfolder = options.get("subfolder", "")
    if os.path.isdir(name):
        return Source(str(name), _within(Path(name), subfolder))
    if os.path.lexists(name):
        raise BadInputError(f"{name} is not a folder; {advice(Path(name))}")
    try:
        return _on_the_hub(str(name), options, files)
    except HubError as error:
        if os.path.isdir(os.path.dirname(name) or "."):  # a mistyped path, perhaps
            raise type(error)(f"no folder {str(name)!r} here (mistyped?), and {error}") from None
        raise


def _on_the_hub(name: str, options: HubOptions, files: Sequence[str] | None) -> Source:
    subfolder = options.get("subfolder", "")
    repository, _, revision = name.partition("@")
    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise BadInputError(
            f"{name!r} is neither a folder nor the name of a repository on the Hub; check the path"
        ) from None
    prefix = f"{subfolder}/" if subfolder else ""
    snapshot = Snapshot(repository, revision or options.get("revision") or "main", options)
    snapshot = snapshot.fetch([prefix + pattern for pattern in files or (*COMPANIONS, *ABOUT)])
    if not snapshot.folder.is_dir():
        raise BadInputError(f"{name} holds no file such as {prefix}{(files or COMPANIONS)[0]}; give another repository")
    folder = _within(snapshot.folder, subfolder)
    if files is None:
        snapshot.fetch([prefix + shard for shard in (*shard_names(folder), SINGLE_NAME)])
    listed = [path.removeprefix(prefix) for path in snapshot.digests if path.startswith(prefix)]
    return Source(name, folder, snapshot.commit, tuple(path for path in listed if "/" not in path), options)


def _within(folder: Path, subfolder: str) -> Path:
    inside = folder / subfolder
    if not inside.is_dir():
        raise BadInputError(f"{folder} has no folder {subfolder}; check the name of the subfolder")
    return inside
