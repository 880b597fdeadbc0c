"""Results of a benchmark: JSON and a Markdown table, with machine and versions."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "numpy", "scipy", "lapx")
FOLDER = Path("benchmarks/results")


def report(
    name: str,
    rows: Sequence[Mapping[str, object]],
    formats: Mapping[str, str],
    folder: Path = FOLDER,
    unit: str = "seconds",
) -> None:
    """Write `name`.json and `name`.md to `folder`, and print the table.

    Args:
        name: of the files.
        rows: the results, alike in their fields; None is an empty cell.
        formats: field -> its format in the table, such as ".1f"; fields that are missing in it are only in the JSON.
        folder: is made if need be.
        unit: of the CPU times.
    """
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    machine = f"{platform.machine()}, one thread, Python {platform.python_version()}, {versions}; CPU {unit}"
    machine += f" on {os.cpu_count()} cores, of which {os.getloadavg()[0]:.0f} were wanted"
    cells = [
        ["" if row[field] is None else format(row[field], form) for field, form in formats.items()] for row in rows
    ]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    table = "\n".join([machine, "", f"| {' | '.join(formats)} |", "|---" * len(formats) + "|", *lines]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    (folder / f"{name}.md").write_text(table)
    sys.stdout.write(table)
