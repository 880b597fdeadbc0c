"""The figures of a card: of their verification, and of the path between the parents."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

from hf_moe_lmc.alignment import Alignment
from hf_moe_lmc.checkpoints import read_json
from hf_moe_lmc.connectivity import PathReport
from hf_moe_lmc.connectivity.report import REPORT_FILES, REPORT_NAME
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.verification import LayerVerification, Verification

MAX_ROWS = 8  # of a table
REPORT_FOLDER = "report"
Row = TypeVar("Row")


def spread(rows: Sequence[Row]) -> list[Row]:
    """As many of the rows as a table holds, evenly spaced, the first and the last among them."""
    if len(rows) <= MAX_ROWS:
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / (MAX_ROWS - 1))] for place in range(MAX_ROWS)]


def worst_layers(verification: Verification) -> list[LayerVerification]:
    """The layers that differ most, as many as a table holds beside the outputs, in module order."""
    number = MAX_ROWS - len(verification.outputs)
    worst = sorted(verification.layers, key=lambda layer: -layer.difference)[:number]
    return [layer for layer in verification.layers if layer in worst]


def verdict_sentence(alignment: Alignment) -> str | None:
    """The verdict in a sentence; None where the alignment was not found by matching."""
    verdict = alignment.verdict()
    return verdict.sentence if verdict else None


@dataclass(frozen=True)
class PathRow:
    """One path. Losses in nats, accuracies in [0, 1]; None where the loss is not a number.

    Args:
        name: "naive", "aligned", ...
        loss_barrier, low, high: the barrier and the ends of its interval.
        accuracy_barrier: of the path.
        loss, accuracy: of the merge, at its own t; None where the path was not measured there.
    """

    name: str
    loss_barrier: float | None
    low: float | None
    high: float | None
    accuracy_barrier: float
    loss: float | None
    accuracy: float | None


@dataclass(frozen=True)
class RoutingRow:
    """Routing of one path at the t of the merge: means over the layers, and the experts that no token takes."""

    name: str
    agreement_with_reference: float
    agreement_with_other: float
    load_entropy: float
    dead_experts: int


@dataclass(frozen=True)
class PathFigures:
    """The paths between two models.

    Args:
        examples, predictions: how many were evaluated.
        dtype: of the evaluation.
        t: of the merge.
        merged: name of the path that the merge lies on, such as "aligned + norms".
        endpoints: loss of the reference, and of the other model.
        paths, routing: one row per path.
    """

    examples: int
    predictions: int
    dtype: str
    t: float
    merged: str
    endpoints: tuple[float | None, float | None]
    paths: list[PathRow]
    routing: list[RoutingRow]

    @property
    def merge(self) -> PathRow | None:
        """The path that the merge lies on, if it was measured at its t."""
        return self._measured(self.merged)

    @property
    def naive(self) -> PathRow | None:
        """The same for the models as they are, if the merge is another."""
        return self._measured("naive") if self.merged != "naive" else None

    @property
    def shown(self) -> list[str]:
        """Names of the paths that a table has room for: the merge, the naive and the aligned one before all others."""
        first = {self.merged, "naive", "aligned"}
        names = sorted((row.name for row in self.paths), key=lambda name: name not in first)[:MAX_ROWS]
        return [row.name for row in self.paths if row.name in names]

    def _measured(self, name: str) -> PathRow | None:
        return next((row for row in self.paths if row.name == name and row.loss is not None), None)


def store_report(report: PathReport | str | Path, folder: Path) -> None:
    """Put the files of a report, or of the folder where one was saved, into `report/` of `folder`.

    Raises:
        BadInputError: it is not a report as `evaluate` writes it; an earlier one stays.
    """
    target = folder / REPORT_FOLDER
    if isinstance(report, PathReport):
        report.save(target)
    elif Path(report).resolve() != target.resolve():
        read_path_figures(Path(report), 0.5, "naive")
        target.mkdir(exist_ok=True)
        for name in REPORT_FILES:
            if (Path(report) / name).is_file():
                shutil.copyfile(Path(report) / name, target / name)
            else:
                (target / name).unlink(missing_ok=True)


def read_path_figures(report: Path, t: float, merged: str) -> PathFigures:
    """The figures of a report.

    Args:
        report: folder of a report.
        t: of the merge.
        merged: name of the path that it lies on.

    Raises:
        BadInputError: it is not a report as `evaluate` writes it.
    """
    file = report / REPORT_NAME
    content = read_json(file)
    try:
        naive = content["paths"]["naive"]["loss"]
        return PathFigures(
            int(content["examples"]),
            int(content["predictions"]),
            str(content["dtype"]),
            t,
            merged,
            (_number(naive[0]), _number(naive[-1])),
            [_path_row(name, path, t) for name, path in content["paths"].items()],
            [
                _routing_row(name, routing, t)
                for name, routing in content["routing"].items()
                if routing["layers"] and t in routing["t"]
            ],
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise BadInputError(f"{file} is no report as evaluate writes it ({error!r}); write it again") from None


def _path_row(name: str, path: dict[str, Any], t: float) -> PathRow:
    place = path["t"].index(t) if t in path["t"] else None
    low, high = path["intervals"]["loss_barrier"]
    return PathRow(
        str(name),
        _number(path["loss_barrier"]),
        _number(low),
        _number(high),
        float(path["accuracy_barrier"]),
        None if place is None else _number(path["loss"][place]),
        None if place is None else _number(path["accuracy"][place]),
    )


def _routing_row(name: str, routing: dict[str, Any], t: float) -> RoutingRow:
    place = routing["t"].index(t)
    columns = {
        figure: [float(layer[place]) for layer in routing[figure]]
        for figure in ("agreement_with_reference", "agreement_with_other", "load_entropy", "dead_experts")
    }
    return RoutingRow(
        str(name),
        mean(columns["agreement_with_reference"]),
        mean(columns["agreement_with_other"]),
        mean(columns["load_entropy"]),
        round(sum(columns["dead_experts"])),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
