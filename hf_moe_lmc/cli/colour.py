"""Colours, on terminals only."""

import os
from typing import TextIO

RED, GREEN = 31, 32


def coloured(text: str, colour: int, stream: TextIO) -> str:
    """`text` as `stream` shows it in a colour; unchanged unless that is a terminal that wants any (no-color.org)."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"
