"""The report of an evaluation of paths: JSON, a table that people read, plots."""

import json
import math
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from .barrier import BarrierIntervals
from .curve import Curve
from .plot import plot_barriers, plot_routing
from .repair_choice import RepairChoice, repaired_name
from .routing import Routing

PACKAGES = ("hf_moe_lmc", "torch", "transformers", "accelerate")
REPORT_NAME = "report.json"
REPORT_FILES = (REPORT_NAME, "report.md", "curves.png", "curves.svg", "routing.png", "routing.svg")

PATH_HEAD = (
    "path",
    "loss barrier",
    "% of naive",
    "accuracy barrier",
    "calibrated loss barrier",
    "loss AUC",
    "midpoint - mean of endpoints",
    "midpoint - best endpoint",
    "midpoint - ensemble",
)


@dataclass(frozen=True)
class PathReport:
    """Everything that is reported of the paths between two models.

    Args:
        model: class of the models.
        dtype: that they were evaluated in.
        curves: name of a path ("naive", "aligned + norms", ...) -> its curve; "naive" is always there.
        intervals: name of a path -> bootstrap intervals of its barriers.
        routing: name of a path -> its routing.
        choices: variant -> whether "auto" repairs it; empty if not asked.
    """

    model: str
    dtype: str
    curves: dict[str, Curve]
    intervals: dict[str, BarrierIntervals]
    routing: dict[str, Routing]
    choices: dict[str, RepairChoice]

    @property
    def predicts_tokens(self) -> bool:
        """Whether losses are those of tokens, so that `exp(loss)` is a perplexity."""
        first = self.curves["naive"].evaluations[0]
        return first.count > len(first.examples)

    @property
    def chosen(self) -> str | None:
        """The aligned path under "auto"; None if it was not asked."""
        choice = self.choices.get("aligned")
        return None if choice is None else repaired_name("aligned", choice.repairs)

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
            "paths": {name: _figures(curve, self.intervals[name]) for name, curve in self.curves.items()},
            "routing": {name: asdict(routing) for name, routing in self.routing.items()},
            "repair": {variant: asdict(choice) for variant, choice in self.choices.items()},
        }

    def summary(self) -> str:
        """One sentence: the loss barrier as the models are, aligned, and aligned under the chosen repairs."""
        naive = self.curves["naive"].barrier.loss_barrier
        shown = [f"Loss barrier of the path: {naive:.4f} nats naive"]
        for name in dict.fromkeys(["aligned", self.chosen or "aligned"]):
            if name in self.curves:
                barrier = self.curves[name].barrier.loss_barrier
                shown.append(f"{barrier:.4f} {name}" + (f" ({100 * barrier / naive:.0f} %)" if naive > 0 else ""))
        return ", ".join(shown) + "."

    def markdown(self) -> str:
        """Both endpoints, and every path: barriers with intervals, midpoints against what they should beat."""
        naive = self.curves["naive"]
        first = naive.evaluations[0]
        lines = [
            f"# Paths between two {self.model} ({self.dtype})",
            "",
            self.summary(),
            "",
            f"{len(first.examples)} examples, {first.count} predictions, {len(naive.t)} points. Losses in nats; "
            "intervals: 95 %, paired bootstrap over examples.",
            "",
            *_endpoints(naive, self.predicts_tokens),
            "",
            _line(PATH_HEAD),
            _line(("---", *["---:"] * (len(PATH_HEAD) - 1))),
        ]
        for name, curve in self.curves.items():
            shown = f"**{name}** (chosen)" if name == self.chosen else name
            lines.append(_line((shown, *_row(curve, naive, self.intervals[name]))))
        if first.metrics:
            lines += ["", *_metrics(self.curves)]
        if self.choices:
            losses = (f"{n} {loss:.4f}" for choice in self.choices.values() for n, loss in choice.held_out_loss.items())
            lines += [
                "",
                f"Loss of midpoints on held-out calibration data, of which auto takes the lower: {', '.join(losses)}.",
            ]
        return "\n".join(lines) + "\n"

    def save(self, folder: str | Path) -> None:
        """Write `report.json`, `report.md`, and `curves` and `routing` as PNG and SVG into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT_NAME).write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        (folder / "report.md").write_text(self.markdown(), encoding="utf-8")
        curves, title = (
            {name: [curve.barrier] for name, curve in self.curves.items()},
            f"Paths between two models ({self.model})",
        )
        ensemble = self.curves["naive"].ensemble_loss
        for suffix in (".png", ".svg"):
            plot_barriers(curves, folder / f"curves{suffix}", title, self.chosen, ensemble)
            if self.routing:
                plot_routing(self.routing, folder / f"routing{suffix}")


def _figures(curve: Curve, intervals: BarrierIntervals) -> dict[str, object]:
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


def _endpoints(curve: Curve, predicts_tokens: bool) -> list[str]:
    rows = [("endpoint", "loss", "accuracy", "perplexity"), ("---", "---:", "---:", "---:")]
    for name, point in (("reference", curve.evaluations[0]), ("other", curve.evaluations[-1])):
        rows.append((name, f"{point.loss:.4f}", f"{point.accuracy:.4f}", f"{math.exp(point.loss):.2f}"))
    rows.append(("prediction ensemble", f"{curve.ensemble_loss:.4f}", "", f"{math.exp(curve.ensemble_loss):.2f}"))
    return [_line(row if predicts_tokens else row[:3]) for row in rows]


def _metrics(curves: dict[str, Curve]) -> list[str]:
    """Every metric at both endpoints, and between them where it is least and where it is most."""
    names = list(curves["naive"].evaluations[0].metrics)
    lines = [_line(("path: reference, least, most, other", *names)), _line(("---", *["---:"] * len(names)))]
    for path, curve in curves.items():
        values = [[point.metrics[name] for point in curve.evaluations] for name in names]
        shown = ((along[0], min(along), max(along), along[-1]) for along in values)
        lines.append(_line((path, *(", ".join(f"{value:.4g}" for value in four) for four in shown))))
    return lines


def _row(curve: Curve, naive: Curve, intervals: BarrierIntervals) -> tuple[str, ...]:
    barrier, whole = curve.barrier, naive.barrier.loss_barrier
    if barrier.failed:
        return (f"failed at t = {', '.join(f'{t:g}' for t in barrier.failed)}", *[""] * (len(PATH_HEAD) - 2))
    endpoints = [point.loss for point in (curve.evaluations[0], curve.evaluations[-1])]
    calibrated, middle, interval = curve.calibrated_barrier, curve.midpoint_loss, intervals.loss_barrier
    return (
        f"{barrier.loss_barrier:.4f} [{interval.low:.4f}, {interval.high:.4f}]",
        f"{100 * barrier.loss_barrier / whole:.0f}" if whole > 0 else "",
        f"{100 * barrier.accuracy_barrier:.1f} pp",
        "" if calibrated is None else f"{calibrated:.4f}",
        f"{barrier.loss_auc:.4f}",
        *(
            "" if middle is None else f"{middle - baseline:+.4f}"
            for baseline in (sum(endpoints) / 2, min(endpoints), naive.ensemble_loss)
        ),
    )


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
