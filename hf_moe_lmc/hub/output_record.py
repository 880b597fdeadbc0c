"""The record in a folder that this package wrote: the models and the options that it was made of."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal, cast

from hf_moe_lmc.alignment.config import CONFIG_NAME
from hf_moe_lmc.alignment.write import FORMAT
from hf_moe_lmc.checkpoints import MANIFEST_NAME, read_json
from hf_moe_lmc.errors import BadInputError

Command = Literal["align", "apply", "merge"]


@dataclass(frozen=True)
class Parent:
    """A model that something was made of.

    Args:
        role: "reference" or "other"; several others are numbered. "model" if there is no pair.
        name: folder, or repository with or without `@revision`; class of a live model.
        commit: of the repository; None for all else.
        label: what the public may know it by; see `parents_of`.
    """

    role: str
    name: str
    commit: str | None
    label: str

    @property
    def repo_id(self) -> str | None:
        """Its repository on the Hub, or None."""
        return self.name.partition("@")[0] if self.commit else None

    @property
    def argument(self) -> str:
        """What a command takes for it."""
        return f"{self.repo_id}@{self.commit}" if self.commit else self.label

    @property
    def public_name(self) -> str:
        """`name` without the paths of this machine."""
        return self.name if self.commit else self.label


@dataclass(frozen=True)
class OutputRecord:
    """A folder that `align`, `apply` or `merge` wrote.

    Args:
        path: of the folder.
        command: that wrote it.
        content: its manifest, or the configuration of an alignment.
        parents: the models that it was made of, the reference first; none for an alignment found without a pair.
        shares: of the models in a merge.
        alignments: digests of the alignments that it was made with; None for a model that was not aligned.
        repairs: those of a merge, in their order.
    """

    path: Path
    command: Command
    content: Mapping[str, Any] = field(repr=False)
    parents: tuple[Parent, ...]
    shares: tuple[float, ...] = ()
    alignments: tuple[str | None, ...] = ()
    repairs: tuple[str, ...] = ()

    @property
    def marker(self) -> str:
        """Name of the file that the record comes from."""
        return CONFIG_NAME if self.command == "align" else MANIFEST_NAME

    @property
    def t(self) -> float | None:
        """Of a merge of two models."""
        return self.shares[1] if len(self.shares) == 2 else None

    @property
    def calibration(self) -> Mapping[str, Any] | None:
        """Where the data came from that repairs were calibrated on, as flags of `merge`; None where none was used."""
        calibration = self.content.get("calibration")
        if not isinstance(calibration, dict):
            return None
        source = calibration.get("source")
        return source if isinstance(source, dict) and "dataset" in source else {"dataset": "DATA"}

    @property
    def allowed_differences(self) -> Mapping[str, str]:
        """Differences of the models of a merge that its user took for harmless: name -> in words."""
        return self.content.get("allowed_differences") or {}

    @property
    def differences(self) -> Sequence[str]:
        """Other differences of the models of a merge, in words, such as settings that only one of them has."""
        return self.content.get("differences") or []

    @property
    def public_content(self) -> bytes:
        """The content of `marker`; folders are called by their label, and files that stayed behind are not named."""
        content = {key: value for key, value in self.content.items() if key != "left_behind"}
        if self.command == "align":
            content |= {parent.role: content[parent.role] | {"name": parent.public_name} for parent in self.parents}
        else:
            pairs = zip(content["models"], self.parents, strict=True)
            content["models"] = [model | {"name": parent.public_name} for model, parent in pairs]
        return json.dumps(content, indent=2).encode() + b"\n"


def open_output(folder: str | Path) -> OutputRecord:
    """The record in a folder.

    Raises:
        BadInputError: it is no output of this package, or its record is damaged or too new.
    """
    path = Path(folder)
    if not path.is_dir():
        raise BadInputError(f"there is no folder {path}; give one that merge, apply or align wrote")
    for name, read in ((MANIFEST_NAME, _read_manifest), (CONFIG_NAME, _read_alignment)):
        if (path / name).is_file():
            try:
                return read(path, read_json(path / name))
            except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
                raise BadInputError(f"{path / name} is not as this package writes it; make the folder again") from None
    raise BadInputError(
        f"{path} holds no {MANIFEST_NAME} and no {CONFIG_NAME}; give a folder that merge, apply or align wrote"
    )


def parents_of(models: Mapping[str, tuple[str, str | None]]) -> tuple[Parent, ...]:
    """Models, given as role -> (name, commit), with their labels.

    The label of a repository is its id, that of a folder the end of its path: as many parts as tell the folders apart.
    """
    paths = [PurePath(os.path.abspath(name)).parts for name, commit in models.values() if not commit]
    length = 1
    while len({path[-length:] for path in paths}) < len(set(paths)):
        length += 1
    return tuple(
        Parent(
            role,
            name,
            commit,
            name.partition("@")[0] if commit else "/".join(PurePath(os.path.abspath(name)).parts[-length:]),
        )
        for role, (name, commit) in models.items()
    )


def _read_manifest(path: Path, content: dict[str, Any]) -> OutputRecord:
    if content["format"] != FORMAT:
        raise BadInputError(
            f"{path / MANIFEST_NAME} has format {content['format']!r}, known is {FORMAT}; upgrade, or make it again"
        )
    if "folders" in content:
        raise BadInputError(f"{path} holds several outputs; give one of its folders: {', '.join(content['folders'])}")
    command, models = content["command"], [_model(entry) for entry in content["models"]]
    shares, alignments, repairs = (content.get(key, []) for key in ("shares", "alignments", "repairs"))
    others = ["other"] if len(models) < 3 else [f"other {number}" for number in range(1, len(models))]
    sound = (
        (len(models) > 1 and len(shares) == len(models) if command == "merge" else command == "apply" and not shares)
        and len(alignments) == max(1, len(models) - 1)
        and all(type(share) in (int, float) and math.isfinite(share) for share in shares)
        and all(isinstance(digest, str | None) for digest in alignments)
        and all(isinstance(name, str) for name in repairs)
        and isinstance(content["versions"], dict)
        and isinstance(content["xxh3"], dict)
        and isinstance(content.get("allowed_differences", {}), dict)
        and isinstance(content.get("differences", []), list)
    )
    if not sound:
        raise ValueError
    roles = ["model"] if command == "apply" else ["reference", *others]
    parents = parents_of(dict(zip(roles, models, strict=True)))
    return OutputRecord(
        path, cast("Command", command), content, parents, tuple(map(float, shares)), tuple(alignments), tuple(repairs)
    )


def _read_alignment(path: Path, content: dict[str, Any]) -> OutputRecord:
    if not isinstance(content["versions"], dict) or not isinstance(content["layers"], dict):
        raise TypeError
    pair = {role: _model(content[role]) for role in ("reference", "other") if content[role] is not None}
    return OutputRecord(path, "align", content, parents_of(pair))


def _model(entry: Any) -> tuple[str, str | None]:
    """Name and commit."""
    name, commit = entry["name"], entry["commit"]
    if not isinstance(name, str) or not isinstance(commit, str | None) or not name:
        raise TypeError
    return name, commit
