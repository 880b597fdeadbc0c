"""Whether files that came from the Hub are those that it names; huggingface_hub compares sizes only."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils.sha import git_hash


def drop_damaged(folder: Path, listed: Sequence[RepoSibling]) -> list[str]:
    """Names of the files whose content is not what the Hub lists, which are deleted, so that they are fetched again.

    Args:
        folder: a snapshot in the cache; what it does not hold is passed over.
        listed: with the sha-256 of large files and the blob of git of the others; without either, a file is believed.
    """
    damaged = [entry.rfilename for entry in listed if not _is(folder / entry.rfilename, entry)]
    for name in damaged:
        (folder / name).resolve().unlink()  # in a cache of links, the content
        (folder / name).unlink(missing_ok=True)
    return damaged


def _is(file: Path, entry: RepoSibling) -> bool:
    if not file.is_file():
        return True
    if entry.lfs:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest() == entry.lfs.sha256
    return entry.blob_id is None or git_hash(file.read_bytes()) == entry.blob_id
