"""The settings of an alignment."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Unpack, get_args

from hf_moe_lmc.checkpoints import HubOptions, find_source, read_json
from hf_moe_lmc.errors import BadInputError, OutputError, check_choice
from hf_moe_lmc.names import ExpertOrder
from hf_moe_lmc.short_help import ShortHelp

CONFIG_NAME = "alignment_config.json"


def versions() -> dict[str, str]:
    """Package -> its version, of the packages that a result depends on."""
    return {package: version(package) for package in ("hf_moe_lmc", "torch", "transformers")}


@dataclass(frozen=True)
class AlignmentConfig(metaclass=ShortHelp):
    """Settings by which one model is aligned to another.

    Args:
        expert_order: the way to match experts; see `hf_moe_lmc.matching.match_experts`. "none" matches nothing.
    """

    expert_order: ExpertOrder = "auto"

    def __post_init__(self) -> None:
        check_choice("expert_order", self.expert_order, get_args(ExpertOrder))

    @classmethod
    def of(cls, config: "AlignmentConfig | ExpertOrder | None") -> "AlignmentConfig":
        """Return a configuration, that of an expert order, or the default."""
        if isinstance(config, str):
            return cls(config)
        return config or cls()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `alignment_config.json` in `folder`.

        Raises:
            OutputError: the folder holds an alignment, whose file has that name.
        """
        file = Path(folder) / CONFIG_NAME
        if file.exists() and "layers" in read_json(file):
            raise OutputError(f"{folder} holds an alignment; give another folder")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.record(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, name: str | Path, **hub: Unpack[HubOptions]) -> "AlignmentConfig":
        """Read the file that `save_pretrained` wrote, or the settings of a saved alignment.

        Args:
            name: folder, or repository on the Hub (`org/alignment@revision`).
            hub: revision, subfolder, token, cache_dir, local_files_only.

        Raises:
            BadInputError: the file is missing, or holds other settings than these.
            HubError: the Hub does not give it.
        """
        file = find_source(name, hub, (CONFIG_NAME,)).folder / CONFIG_NAME
        try:
            return cls.of_record(read_json(file)["config"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadInputError(f"{file} does not say how to align: {error}") from None

    def record(self) -> dict[str, Any]:
        """Return the content of the saved file."""
        return {"versions": versions(), "config": asdict(self)}

    @classmethod
    def of_record(cls, entries: Mapping[str, Any]) -> "AlignmentConfig":
        """Return the settings in `entries`; those that this version does not know are left out.

        Raises:
            ValueError: they are no table, or a setting has a value that it cannot have.
        """
        if not isinstance(entries, Mapping):
            raise ValueError(f"{entries!r} are no settings")
        try:
            return cls(**{field.name: entries[field.name] for field in fields(cls) if field.name in entries})
        except BadInputError as error:
            raise ValueError(error) from None
