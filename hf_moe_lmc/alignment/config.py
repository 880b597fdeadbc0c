"""How to align."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from hf_moe_lmc.checkpoints import HubOptions, find_source, read_json
from hf_moe_lmc.errors import BadInputError, OutputError
from hf_moe_lmc.matching import ExpertOrder

from .versions import versions

CONFIG_NAME = "alignment_config.json"


@dataclass(frozen=True)
class AlignmentConfig:
    """How one model is aligned to another.

    Args:
        expert_order: how experts are matched; see `hf_moe_lmc.matching.match_experts`.
        balance_scales: whether free scales of units, routers and experts are made alike before matching. They are
            never written, for that would round weights.
    """

    expert_order: ExpertOrder = "auto"
    balance_scales: bool = False

    @classmethod
    def of(cls, config: "AlignmentConfig | ExpertOrder | None") -> "AlignmentConfig":
        """A configuration, or that of an expert order, or the default."""
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
    def from_pretrained(cls, name: str | Path, options: HubOptions | None = None) -> "AlignmentConfig":
        """Read what `save_pretrained` wrote, or how a saved alignment was found.

        Args:
            name: folder, or repository on the Hub (`org/alignment@revision`).
            options: revision, subfolder, token, cache_dir, local_files_only.

        Raises:
            BadInputError: the file is missing, or holds other settings than these.
            HubError: the Hub does not give it.
        """
        file = find_source(name, options, (CONFIG_NAME,)).folder / CONFIG_NAME
        try:
            return cls.of_record(read_json(file)["config"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadInputError(f"{file} does not say how to align: {error}") from None

    def push_to_hub(
        self, repository: str, private: bool = False, create_pr: bool = False, token: str | None = None
    ) -> str:
        """Send what `save_pretrained` writes to a repository of its own; see `hf_moe_lmc.hub.push_config`."""
        from hf_moe_lmc.hub import push_config

        return push_config(self, repository, private, create_pr, token)

    def record(self) -> dict[str, Any]:
        """What is saved."""
        return {"versions": versions(), "config": asdict(self)}

    @classmethod
    def of_record(cls, entries: Mapping[str, Any]) -> "AlignmentConfig":
        """The settings in `entries`.

        Raises:
            TypeError, ValueError: a setting is not known, or has a value that it cannot have.
        """
        config = cls(**entries)
        if config.expert_order not in get_args(ExpertOrder) or type(config.balance_scales) is not bool:
            raise ValueError(f"{dict(entries)} are no settings")
        return config
