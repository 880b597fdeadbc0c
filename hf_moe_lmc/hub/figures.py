"""The figures of a card: of their verification, and of the path between the parents."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from hf_moe_lmc.checkpoints import read_json
from hf_moe_lmc.connectivity import PathReport
from hf_moe_lmc.connectivity.report import REPORT_NAME
from hf_moe_lmc.errors import BadInputError

REPORT_FOLDER = "report"
REPORT_FILES = (REPORT_NAME, "report.md", "curves.png", "curves.svg", "routing.png", "routing.svg")


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
        paths, routing: one row per path.
    """

    examples: int
    predictions: int
    dtype: str
    t: float
    merged: str
    paths: list[PathRow]
    routing: list[RoutingRow]

    @property
    def merge(self) -> PathRow | None:
        """The path that the merge lies on, if it was measured at its t."""
        return next((row for row in self.paths if row.name == self.merged and row.loss is not None), None)


def store_report(report: PathReport | str | Path, folder: Path) -> None:
    """Put the files of a report, or of the folder where one was saved, into `report/` of `folder`."""
    target = folder / REPORT_FOLDER
    if isinstance(report, PathReport):
        report.save(target)
    elif Path(report).resolve() != target.resolve():
        read_json(Path(report) / REPORT_NAME)
        target.mkdir(exist_ok=True)
        for name in REPORT_FILES:
            if (Path(report) / name).is_file():
                shutil.copyfile(Path(report) / name, target / name)


def read_path_figures(folder: Path, t: float, merged: str) -> PathFigures | None:
    """The figures of the report in `report/` of `folder`; None without a report.

    Args:
        folder: of a merge of two models.
        t: of the merge.
        merged: name of the path that it lies on.

    Raises:
        BadInputError: it is not a report as `evaluate` writes it.
    """
    file = folder / REPORT_FOLDER / REPORT_NAME
    if not file.exists():
        return None
    report = read_json(file)
    try:
        return PathFigures(
            int(report["examples"]),
            int(report["predictions"]),
            str(report["dtype"]),
            t,
            merged,
            [_path_row(name, path, t) for name, path in report["paths"].items()],
            [
                _routing_row(name, routing, t)
                for name, routing in report["routing"].items()
                if routing["layers"] and t in routing["t"]
            ],
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
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
