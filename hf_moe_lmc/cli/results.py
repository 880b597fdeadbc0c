"""Results of commands, as text for people and as JSON for machines."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from hf_moe_lmc.alignment import Alignment, MutualAlignment, Plan

RED, GREEN, YELLOW = 31, 32, 33
PROCESSES = (1, 8, 64)


@dataclass(frozen=True)
class CommandResult:
    """The outcome of a command.

    Args:
        text: for people; whole lines.
        document: the same for machines (`--json`); JSON values.
        code: exit code.
    """

    text: str
    document: Mapping[str, Any]
    code: int = 0


def describe_plan(plan: "Plan", output: str | os.PathLike[str]) -> CommandResult:
    """The result of `--dry-run`; the machine is measured."""
    from hf_moe_lmc.alignment import Machine
    from hf_moe_lmc.progress import duration

    machine = Machine.measured(plan.source, os.path.dirname(os.path.abspath(output)))
    seconds = {processes: machine.seconds(plan, processes) for processes in PROCESSES}
    times = [f"{duration(taken)} by {processes}" for processes, taken in seconds.items()]
    times[0] += " process"
    return CommandResult(
        "A dry run: nothing was written; the work itself takes\n"
        f"{plan.text}time, related models        {', '.join(times)}\n",
        asdict(plan) | {"seconds": seconds},
    )


def describe_output(output: str, differences: Sequence[str], noted: str = "") -> CommandResult:
    """The folder of an output, and the differences of the models that it was made of; it has the settings of one."""
    beside = written_notes(output)
    lines = "".join(f"{line}\n" for line in [*(f"difference: {text}" for text in differences), *beside])
    document = {"output": output, "differences": list(differences), "notes": beside}
    return CommandResult(f"{lines}{noted}Written to {output}\n", document)


def written_notes(output: str) -> list[str]:
    """Sentences on what written checkpoints carry along or lack, out of their manifests."""
    from hf_moe_lmc.alignment import notes
    from hf_moe_lmc.checkpoints import MANIFEST_NAME

    files = sorted([*Path(output).glob(MANIFEST_NAME), *Path(output).glob(f"*/{MANIFEST_NAME}")])
    manifests = [json.loads(file.read_bytes()) for file in files]
    found = [notes(manifest.get("carried", ()), manifest.get("left_behind", {})) for manifest in manifests]
    return list(dict.fromkeys(note for own in found for note in own))


def describe_alignment(
    alignment: "Alignment | MutualAlignment", names: Sequence[str], output: str, differences: Sequence[str]
) -> CommandResult:
    """The distances that an alignment achieves, and `describe_output`; several models are called by their `names`."""
    from hf_moe_lmc.alignment import Alignment

    written = describe_output(output, differences)
    if isinstance(alignment, Alignment):
        text, figures = _figures(alignment)
        return CommandResult(f"{text}{written.text}", {**written.document, **figures})
    achieved = [_figures(part) for part in alignment]
    return CommandResult(
        "".join(f"{name}: {text}" for name, (text, _) in zip(names, achieved, strict=True))
        + f"distance of all pairs of models: {alignment.reference_distance:.4g} with all aligned to the first, "
        f"{alignment.distance:.4g} with all aligned to one another\n{written.text}",
        {
            **written.document,
            "reference_distance": alignment.reference_distance,
            "distance": alignment.distance,
            "others": [{"model": name} | figures for name, (_, figures) in zip(names, achieved, strict=True)],
        },
    )


def _figures(alignment: "Alignment") -> tuple[str, dict[str, Any]]:
    """Lines and JSON values."""
    verdict = alignment.verdict()
    # Layers that were matched on to several models have no evidence; what the others tell is no verdict of the pair.
    whole = verdict if verdict and len(verdict.layers) == len(alignment.layers) else None
    text = (f"{whole.text()}\n" if whole else "") + f"{alignment.summary()}\n"
    return text, {"verdict": verdict.to_json() if verdict else None, "layers": alignment.layer_table()}


def text_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """One line per row under the head; numbers right, words left, two spaces between the columns."""
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]
    lines = (
        "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in cells
    )
    return "\n".join(lines)


def coloured(text: str, colour: int, stream: TextIO) -> str:
    """`text` as `stream` shows it in a colour; unchanged unless that is a terminal that wants any (no-color.org)."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"
