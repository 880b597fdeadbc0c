"""A local folder or a Hub repository -> a folder of files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_moe_lmc.errors import BadInputError

from .companions import COMPANIONS
from .download import HubOptions, Snapshot
from .shards import ADAPTER_NAME, INDEX_NAME, SINGLE_NAME, shard_names

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
    if str(name) and Path(name).is_dir():
        return Source(str(name), _within(Path(name), subfolder))
    repository, _, revision = str(name).partition("@")
    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise BadInputError(f"{str(name)!r} is neither a folder nor the name of a repository on the Hub") from None
    prefix = f"{subfolder}/" if subfolder else ""
    snapshot = Snapshot(repository, revision or options.get("revision") or "main", options)
    snapshot = snapshot.fetch([prefix + pattern for pattern in files or (*COMPANIONS, *ABOUT)])
    folder = _within(snapshot.folder, subfolder)
    if files is None:
        snapshot.fetch([prefix + shard for shard in (*shard_names(folder), SINGLE_NAME)])
    listed = [path.removeprefix(prefix) for path in snapshot.digests if path.startswith(prefix)]
    return Source(str(name), folder, snapshot.commit, tuple(path for path in listed if "/" not in path), options)


def _within(folder: Path, subfolder: str) -> Path:
    inside = folder / subfolder
    if not inside.is_dir():
        raise BadInputError(f"{folder} has no folder {subfolder}")
    return inside
