"""A folder that this package wrote, and what it was made of."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_moe_lmc.alignment.config import CONFIG_NAME
from hf_moe_lmc.checkpoints import MANIFEST_NAME, read_json
from hf_moe_lmc.errors import BadInputError

from .parent import Parent

ALIGN, APPLY, MERGE, MERGE_MANY = "align", "apply", "merge", "merge_many"
MERGES = (MERGE, MERGE_MANY)
CONFIGURE = "configure"  # no command: the settings of an alignment alone
ROLE = re.compile(r"reference|other( \d+)?")  # several others are numbered


@dataclass(frozen=True)
class MadeFolder:
    """A folder that this package wrote.

    Args:
        path: of the folder.
        command: that wrote it: "align", "apply", "merge" or "merge_many"; or "configure".
        record: its manifest, or the configuration of an alignment.
        parents: role -> model; "reference" is missing after `apply`, both are for alignments found without a pair.
    """

    path: Path
    command: str
    record: Mapping[str, Any] = field(repr=False)
    parents: Mapping[str, Parent]

    @property
    def marker(self) -> str:
        """Name of the file that the record comes from."""
        return CONFIG_NAME if self.command in (ALIGN, CONFIGURE) else MANIFEST_NAME

    @property
    def alignments(self) -> list[str]:
        """Digests of the alignments that it was made with."""
        return self.record["alignments"] if self.command == MERGE_MANY else [self.record["alignment"]]

    @property
    def repairs(self) -> tuple[str, ...]:
        """Those of a merge, in their order; see `hf_moe_lmc.connectivity.repairs`."""
        found = self.record.get("repairs")
        return tuple(name for name in found if isinstance(name, str)) if isinstance(found, list) else ()

    @property
    def calibration(self) -> Mapping[str, Any] | None:
        """Where the data came from that repairs were calibrated on, as flags of `merge`; None where none was used."""
        found = self.record.get("calibration")
        if not isinstance(found, dict):
            return None
        source = found.get("source")
        return source if isinstance(source, dict) and "dataset" in source else {"dataset": "DATA"}

    @property
    def public_record(self) -> bytes:
        """The content of `marker` without the paths of this machine: folders are called by their last part."""
        public = {
            role: self.record[role] | {"name": parent.name if parent.commit else parent.label}
            for role, parent in self.parents.items()
        }
        return json.dumps(dict(self.record) | public, indent=2).encode() + b"\n"


def open_made_folder(folder: str | Path) -> MadeFolder:
    """What the folder says of itself.

    Raises:
        BadInputError: it is no output of this package, or its record is damaged.
    """
    path = Path(folder)
    if (path / MANIFEST_NAME).is_file():
        record = read_json(path / MANIFEST_NAME)
        if isinstance(several := record.get("folders"), dict):
            raise BadInputError(f"{path} holds several outputs; give one of its folders: {', '.join(several)}")
        command = record.get("command")
        how = {MERGE: [record.get("t")], MERGE_MANY: record.get("weights")}
        known = command == APPLY or _are_numbers(how.get(str(command)))
        sound = known and isinstance(record.get("sha256"), dict)
    elif (path / CONFIG_NAME).is_file():
        record, command = read_json(path / CONFIG_NAME), ALIGN
        sound = isinstance(record.get("layers"), dict)
    else:
        raise BadInputError(
            f"{path} holds no {MANIFEST_NAME} and no {CONFIG_NAME}; give a folder that merge, apply or align wrote"
        )
    parents = {role: _parent(origin) for role, origin in record.items() if ROLE.fullmatch(role) and origin is not None}
    if not sound or not isinstance(record.get("versions"), dict) or None in parents.values():
        raise BadInputError(f"{path}: its record is not as this package writes it; make the folder again")
    return MadeFolder(path, str(command), record, {role: parent for role, parent in parents.items() if parent})


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, int | float) for value in values)


def _parent(entry: Any) -> Parent | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    commit = entry.get("commit")
    return Parent(entry["name"], commit) if commit is None or isinstance(commit, str) else None
