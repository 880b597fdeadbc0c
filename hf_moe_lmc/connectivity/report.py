"""What an evaluation of paths found: JSON, a table that people read, pictures."""

import json
import math
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from .auto_repair import RepairChoice
from .bootstrap import BarrierIntervals
from .curve import Curve
from .plot import plot_barriers, plot_routing
from .repairs import repaired_name
from .report_table import render
from .routing import Routing

PACKAGES = ("hf_moe_lmc", "torch", "transformers", "accelerate")
REPORT_NAME = "report.json"


@dataclass(frozen=True)
class PathReport:
    """Everything that is reported of the paths between two models.

    Args:
        model: class of the models.
        dtype: that they were evaluated in.
        curves: name of a path ("naive", "aligned + norms", ...) -> what was found on it; "naive" is always there.
        intervals: name of a path -> bootstrap intervals of its barriers.
        routing: name of a path -> its routing.
        repair: the repairs that held-out calibration data asks for on the aligned path, or None if not asked.
    """

    model: str
    dtype: str
    curves: dict[str, Curve]
    intervals: dict[str, BarrierIntervals]
    routing: dict[str, Routing]
    repair: RepairChoice | None

    @property
    def predicts_tokens(self) -> bool:
        """Whether losses are those of tokens, so that `exp(loss)` is a perplexity."""
        found = self.curves["naive"].evaluations[0]
        return found.count > len(found.examples)

    @property
    def chosen(self) -> str | None:
        """The aligned path under the repairs that were chosen; None if none could be."""
        return None if self.repair is None else repaired_name("aligned", self.repair.repairs)

    def to_json(self) -> dict[str, object]:
        """The content of `report.json`; NaN is null."""
        naive = self.curves["naive"]
        return {
            "model": self.model,
            "dtype": self.dtype,
            "versions": {package: version(package) for package in PACKAGES},
            "examples": len(naive.evaluations[0].examples),
            "predictions": naive.evaluations[0].count,
            "ensemble_loss": _number(naive.ensemble_loss),
            "paths": {name: _path(curve, self.intervals[name]) for name, curve in self.curves.items()},
            "routing": {name: asdict(routing) for name, routing in self.routing.items()},
            "repair": None if self.repair is None else asdict(self.repair),
        }

    def markdown(self) -> str:
        """Both ends, and every path in a table."""
        return render(self)

    def save(self, folder: str | Path) -> None:
        """Write `report.json`, `report.md`, and `curves` and `routing` as PNG and SVG into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT_NAME).write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        (folder / "report.md").write_text(self.markdown(), encoding="utf-8")
        for suffix in (".png", ".svg"):
            curves = {name: [curve.barrier] for name, curve in self.curves.items()}
            plot_barriers(curves, folder / f"curves{suffix}", f"Paths between two {self.model}")
            if self.routing:
                plot_routing(self.routing, folder / f"routing{suffix}")


def _path(curve: Curve, intervals: BarrierIntervals) -> dict[str, object]:
    barrier = curve.barrier
    calibrated, metrics = [point.calibrated_loss for point in curve.evaluations], curve.evaluations[0].metrics
    return {
        "t": barrier.t,
        "loss": [_number(x) for x in barrier.loss],
        "accuracy": barrier.accuracy,
        "calibrated_loss": None if None in calibrated else [_number(x) for x in calibrated if x is not None],
        "metrics": {name: [_number(point.metrics[name]) for point in curve.evaluations] for name in metrics},
        "failed": barrier.failed,
        "loss_barrier": _number(barrier.loss_barrier),
        "accuracy_barrier": barrier.accuracy_barrier,
        "loss_auc": _number(barrier.loss_auc),
        "accuracy_auc": barrier.accuracy_auc,
        "intervals": {
            name: [_number(interval["low"]), _number(interval["high"])] for name, interval in asdict(intervals).items()
        },
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
