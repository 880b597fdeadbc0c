"""What a command has to say."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """The outcome of a command.

    Args:
        text: for people; whole lines.
        document: the same for machines (`--json`); JSON values.
        code: exit code.
    """

    text: str
    document: Mapping[str, Any]
    code: int = 0
