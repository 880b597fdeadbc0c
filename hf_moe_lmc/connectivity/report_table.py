"""The report that people read."""

import math
from typing import TYPE_CHECKING

from .bootstrap import BarrierIntervals
from .curve import Curve

if TYPE_CHECKING:
    from .report import PathReport

PATH_HEAD = (
    "path",
    "loss barrier",
    "% of naive",
    "accuracy barrier",
    "calibrated loss barrier",
    "loss AUC",
    "midpoint - mean of ends",
    "midpoint - best end",
    "midpoint - ensemble",
)


def render(report: "PathReport") -> str:
    """Both ends, and every path: barriers with intervals, midpoints against what they should beat; Markdown."""
    naive = report.curves["naive"]
    first = naive.evaluations[0]
    lines = [
        f"# Paths between two {report.model} ({report.dtype})",
        "",
        f"{len(first.examples)} examples, {first.count} predictions, {len(naive.t)} points. Losses in nats; intervals: "
        "95 %, paired bootstrap over examples.",
        "",
        *_ends(naive, report.predicts_tokens),
        "",
        _line(PATH_HEAD),
        _line(("---", *["---:"] * (len(PATH_HEAD) - 1))),
    ]
    for name, curve in report.curves.items():
        shown = f"**{name}** (chosen)" if name == report.chosen else name
        lines.append(_line((shown, *_path(curve, naive, report.intervals[name]))))
    if first.metrics:
        lines += ["", *_metrics(report.curves)]
    if report.repair is not None:
        losses = ", ".join(f"{name} {loss:.4f}" for name, loss in report.repair.held_out_loss.items())
        lines += ["", f"Chosen on held-out calibration data: {report.chosen} (midpoint's loss there: {losses})."]
    return "\n".join(lines) + "\n"


def _ends(curve: Curve, predicts_tokens: bool) -> list[str]:
    rows = [("end", "loss", "accuracy", "perplexity"), ("---", "---:", "---:", "---:")]
    for name, end in (("reference", curve.evaluations[0]), ("other", curve.evaluations[-1])):
        rows.append((name, f"{end.loss:.4f}", f"{end.accuracy:.4f}", f"{math.exp(end.loss):.2f}"))
    rows.append(("prediction ensemble", f"{curve.ensemble_loss:.4f}", "", f"{math.exp(curve.ensemble_loss):.2f}"))
    return [_line(row if predicts_tokens else row[:3]) for row in rows]


def _metrics(curves: dict[str, Curve]) -> list[str]:
    """Every metric at both ends, and between them where it is least and where it is most."""
    names = list(curves["naive"].evaluations[0].metrics)
    lines = [_line(("path: reference, least, most, other", *names)), _line(("---", *["---:"] * len(names)))]
    for path, curve in curves.items():
        values = [[point.metrics[name] for point in curve.evaluations] for name in names]
        shown = ((found[0], min(found), max(found), found[-1]) for found in values)
        lines.append(_line((path, *(", ".join(f"{value:.4g}" for value in found) for found in shown))))
    return lines


def _path(curve: Curve, naive: Curve, intervals: BarrierIntervals) -> tuple[str, ...]:
    barrier, whole = curve.barrier, naive.barrier.loss_barrier
    if barrier.failed:
        return (f"failed at t = {', '.join(f'{t:g}' for t in barrier.failed)}", *[""] * (len(PATH_HEAD) - 2))
    ends = [point.loss for point in (curve.evaluations[0], curve.evaluations[-1])]
    calibrated, middle, interval = curve.calibrated_barrier, curve.midpoint_loss, intervals.loss_barrier
    return (
        f"{barrier.loss_barrier:.4f} [{interval.low:.4f}, {interval.high:.4f}]",
        f"{100 * barrier.loss_barrier / whole:.0f}" if whole > 0 else "",
        f"{100 * barrier.accuracy_barrier:.1f} pp",
        "" if calibrated is None else f"{calibrated:.4f}",
        f"{barrier.loss_auc:.4f}",
        *("" if middle is None else f"{middle - end:+.4f}" for end in (sum(ends) / 2, min(ends), naive.ensemble_loss)),
    )


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
