"""What the cards of the models that something was made of say, and the license that they allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from hf_moe_lmc.checkpoints import HubOptions
from hf_moe_lmc.checkpoints.hub_errors import hub_access
from hf_moe_lmc.errors import BadInputError, HubError, one_line

from .licenses import License, merged_license
from .markdown import front_matter, read_markdown
from .output_record import Parent

KEYS = ("license", "license_name", "license_link", "pipeline_tag", "language", "datasets", "base_model")


@dataclass(frozen=True)
class ParentCard:
    """The card of a parent; all empty where there is none, or where it says something else than expected.

    `failure` says why the Hub did not give it.
    """

    parent: Parent
    license: License | None = None
    pipeline_tag: str | None = None
    language: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    base_model: tuple[str, ...] = ()
    failure: str | None = None


def read_parent_card(parent: Parent, options: HubOptions) -> ParentCard:
    """The metadata in the README.md of `parent`; empty if it cannot be had. Of `options`, access to the Hub counts."""
    try:
        metadata = _metadata(parent, options)
    except HubError as error:
        return ParentCard(parent, failure=str(error))
    license, name, link, pipeline_tag = (_word(metadata, key) for key in KEYS[:4])
    language, datasets, base_model = (_words(metadata, key) for key in KEYS[4:])
    return ParentCard(
        parent, License(license, name, link) if license else None, pipeline_tag, language, datasets, base_model
    )


def allowed_license(cards: Sequence[ParentCard]) -> License:
    """The license that the cards of all parents allow.

    Raises:
        BadInputError, IncompatiblePairError: there is none; see `merged_license`.
        HubError: the Hub did not give a card.
    """
    for card in cards:
        if card.failure:
            raise HubError(f"no card of {card.parent.label}: {card.failure}; or name a license with --license")
    return merged_license([(card.parent.label, card.license) for card in cards])


def _metadata(parent: Parent, options: HubOptions) -> Mapping[str, Any]:
    """What is read of the README.md of `parent`; `HubError` if the Hub does not give it."""
    file = Path(parent.name) / "README.md"
    if parent.repo_id:
        access: dict[str, Any] = {name: options.get(name) for name in ("token", "cache_dir")}
        access["local_files_only"] = bool(options.get("local_files_only"))
        with hub_access(parent.repo_id, token=access["token"]):
            try:
                file = Path(hf_hub_download(parent.repo_id, "README.md", revision=parent.commit, **access))
            except RemoteEntryNotFoundError:
                return {}
    try:
        return front_matter(read_markdown(file), KEYS)
    except BadInputError:
        return {}


def _words(metadata: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = metadata.get(key)
    values = value if isinstance(value, list) else [value]
    return tuple(one_line(word) for word in values if isinstance(word, str) and word.strip())


def _word(metadata: Mapping[str, Any], key: str) -> str | None:
    words = _words(metadata, key)
    return words[0] if len(words) == 1 else None
