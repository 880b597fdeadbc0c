"""The models that something was made of, and what their cards say."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError

from .hub_failure import describe
from .licences import Licence
from .markdown import one_line

MAX_CARD_BYTES = 2**20


@dataclass(frozen=True)
class Parent:
    """A model that something was made of.

    Args:
        name: folder, or repository with or without `@revision`; class of a live model.
        commit: of the repository; None for all else.
    """

    name: str
    commit: str | None

    @property
    def repository(self) -> str | None:
        """Its repository on the Hub, or None."""
        return self.name.partition("@")[0] if self.commit else None

    @property
    def label(self) -> str:
        """What the public may know it by: the repository, or the last part of a folder's path."""
        return self.repository or Path(self.name).resolve().name

    @property
    def argument(self) -> str:
        """What a command takes for it."""
        return f"{self.repository}@{self.commit}" if self.commit else self.label


@dataclass(frozen=True)
class ParentCard:
    """What the card of a parent says; all empty where there is none, or where it says something else than expected.

    `failure` says why the Hub did not give it.
    """

    licence: Licence | None = None
    pipeline_tag: str | None = None
    language: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    base_model: tuple[str, ...] = ()
    failure: str | None = None


def read_parent_card(parent: Parent, token: str | bool | None = None) -> ParentCard:
    """What the README.md of `parent` says in its metadata; empty if it cannot be had."""
    try:
        if parent.repository:
            file = Path(hf_hub_download(parent.repository, "README.md", revision=parent.commit, token=token))
        else:
            file = Path(parent.name) / "README.md"
        if file.stat().st_size > MAX_CARD_BYTES:
            return ParentCard()
        metadata = metadata_load(file) or {}
    except RemoteEntryNotFoundError:
        return ParentCard()
    except (HTTPError, LocalEntryNotFoundError) as error:
        return ParentCard(failure=describe(error.__cause__ or error, parent.label))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return ParentCard()
    licence, name, link = (_word(metadata, key) for key in ("license", "license_name", "license_link"))
    return ParentCard(
        licence=Licence(licence, name, link) if licence else None,
        pipeline_tag=_word(metadata, "pipeline_tag"),
        language=_words(metadata, "language"),
        datasets=_words(metadata, "datasets"),
        base_model=_words(metadata, "base_model"),
    )


def _words(metadata: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = metadata.get(key)
    values = value if isinstance(value, list) else [value]
    return tuple(one_line(word) for word in values if isinstance(word, str) and word.strip())


def _word(metadata: Mapping[str, Any], key: str) -> str | None:
    words = _words(metadata, key)
    return words[0] if len(words) == 1 else None
