"""Files of a repository on the Hub, all of one commit, each what the Hub lists."""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import TypedDict

from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError

from hf_moe_lmc.errors import HubError

from .hub_errors import BusyError, hub_access
from .stored_tensor import CHUNK_BYTES

# Seconds between attempts. huggingface_hub goes on with broken downloads itself; it gives up after six attempts that
# each wait ten seconds.
PAUSES = (1, 2)

CHECKED_NAME = ".hf_moe_lmc_checked.json"  # in the cache of a repository
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # of a blob of git, or sha-256


class HubOptions(TypedDict, total=False):
    """Keywords of `from_pretrained` that say where a checkpoint is."""

    revision: str | None
    subfolder: str
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit.

    Args:
        repository, revision: as they were asked for.
        options: how the Hub is asked.
        commit: that the revision is; None before a file was asked for.
        folder: in the cache, where the files are that were asked for.
        digests: path of each file in the repository -> sha-256 or blob of git, "" if that is not known.
    """

    repository: str
    revision: str
    options: HubOptions = field(repr=False)
    commit: str | None = None
    folder: Path = Path()
    digests: dict[str, str] = field(default_factory=dict, repr=False)

    def fetch(self, patterns: Sequence[str]) -> "Snapshot":
        """The same, once the files whose paths match a pattern (stars match no slash) are in the cache, and intact.

        Raises:
            HubError: the Hub does not give them.
        """
        return _patiently(lambda: self._fetch(patterns))

    @property
    def local(self) -> bool:
        """Whether only the cache is asked."""
        return bool(self.options.get("local_files_only")) or constants.HF_HUB_OFFLINE

    def _fetch(self, patterns: Sequence[str]) -> "Snapshot":
        cache, token = self.options.get("cache_dir"), self.options.get("token")
        with hub_access(self.repository, self.revision, token=token):
            # Asked first, for snapshot_download would hide a refusal behind what is cached.
            now = self if self.commit else self._listed()
            names = [name for name in now.digests if matches(name, patterns)]
            folder = Path(
                snapshot_download(
                    self.repository,
                    # One commit for all files, even if the branch moves meanwhile.
                    revision=self.commit or self.revision,
                    token=token,
                    cache_dir=cache,
                    local_files_only=self.local,
                    allow_patterns=[escape(name) for name in names] if now.digests else list(patterns),
                )
            )
        if now.commit and now.commit != folder.name:  # a snapshot's folder is called like its commit
            raise BusyError(f"{self.repository}@{self.revision} changed while it was opened; try again")
        if damaged := drop_damaged(folder, {name: now.digests[name] for name in names}):
            where = f"{damaged[0]} of {self.repository}@{self.revision}"
            if self.local:
                raise HubError(f"{where} was damaged in the cache and is deleted there; fetch it again from the Hub")
            raise BusyError(f"what the Hub sent as {where} is not what it lists; it was thrown away, try again later")
        return replace(now, commit=folder.name, folder=folder)

    def _listed(self) -> "Snapshot":
        if self.local:
            return replace(self, digests=self._cached_listing())
        listed = HfApi(token=self.options.get("token")).model_info(
            self.repository, revision=self.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT, files_metadata=True
        )
        digests = {
            file.rfilename: (file.lfs.sha256 if file.lfs else file.blob_id) or "" for file in listed.siblings or ()
        }
        return replace(self, commit=listed.sha, digests=digests)

    def _cached_listing(self) -> dict[str, str]:
        try:
            files = get_cached_repo_tree(
                self.repository, revision=self.revision, cache_dir=self.options.get("cache_dir")
            )
        except CachedRepoTreeNotFoundError:
            return {}
        return {file.path: "" for file in files}


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a path with slashes matches one of the patterns, whose stars match no slash."""
    return any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in patterns)


def drop_damaged(folder: Path, digests: dict[str, str]) -> list[str]:
    """Delete the files whose content has another digest, so that they are fetched again; their names.

    Each file is read once, when it is first used, whoever fetched it; huggingface_hub itself compares sizes only.

    Args:
        folder: a snapshot in the cache; files that it does not hold are passed over.
        digests: name -> sha-256, or blob of git; of "", the file is called by it if the cache is one of links.
    """
    record = folder.parents[1] / CHECKED_NAME
    checked, damaged = _read_record(record), []
    for name, digest in digests.items():
        file = (folder / name).resolve()
        digest = digest or (file.name if DIGEST.fullmatch(file.name) else "")
        if not digest or not file.is_file() or checked.get(digest) == (state := _state(file)):
            continue
        if _is_intact(file, digest):
            checked[digest] = state
        else:
            damaged.append(name)
            file.unlink(missing_ok=True)  # in a cache of links, the content
            (folder / name).unlink(missing_ok=True)
    _write_record(record, checked)
    return damaged


def _is_intact(file: Path, digest: str) -> bool:
    found = hashlib.sha256() if len(digest) == 64 else hashlib.sha1(b"blob %d\0" % file.stat().st_size)
    with file.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest() == digest


def _state(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _read_record(record: Path) -> dict[str, list[int]]:
    try:
        known = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_record(record: Path, checked: dict[str, list[int]]) -> None:
    new = record.with_name(f"{record.name}.{os.getpid()}")
    try:
        new.write_text(json.dumps(checked))
        os.replace(new, record)
    except OSError:  # a cache that cannot be written is checked again the next time
        new.unlink(missing_ok=True)


def _patiently(fetch: Callable[[], Snapshot]) -> Snapshot:
    for pause in PAUSES:
        try:
            return fetch()
        except BusyError:
            time.sleep(pause)
    return fetch()
