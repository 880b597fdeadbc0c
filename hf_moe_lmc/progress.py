"""Progress of long work: a bar on a terminal and in a notebook, a line now and then in a log file."""

import sys
import time
from typing import Any, ClassVar

from huggingface_hub.utils import are_progress_bars_disabled, tqdm

PAUSE = 30  # seconds between lines
LINE = "{desc}: {percentage:.0f}%, {n_fmt} of {total_fmt} {unit}, {elapsed} elapsed, {remaining} left"


class Progress(tqdm):
    """A bar of huggingface_hub, which `HF_HUB_DISABLE_PROGRESS_BARS` hides.

    Where standard error is neither a terminal nor a notebook, it writes lines now and then.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("disable", False)  # whatever TQDM_DISABLE says of the bars of libraries
        if not (sys.stderr.isatty() or "ipykernel" in sys.modules):
            # No line at its start; what is left by the pace of the whole run, for lines are too few to show a trend.
            options |= {"file": _Lines(), "bar_format": LINE, "delay": 1e-9, "smoothing": 0}
        super().__init__(*args, **options)


class _Lines:
    """What a bar redraws, as lines of standard error, at most one of all bars in `PAUSE` seconds."""

    written: ClassVar[float] = time.monotonic()  # the time of the last line of any bar

    def write(self, text: str) -> None:
        if (line := text.strip()) and time.monotonic() >= _Lines.written + PAUSE:
            sys.stderr.write(f"{line}\n")
            _Lines.written = time.monotonic()

    def flush(self) -> None:
        sys.stderr.flush()


def announce(text: str) -> None:
    """Write a line to standard error, where bars are not hidden."""
    if not are_progress_bars_disabled():
        sys.stderr.write(f"{text}\n")


def duration(seconds: float) -> str:
    """Such as 40 s, 12 min, 3.5 h or 60 days."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{max(1, round(seconds))} s"
