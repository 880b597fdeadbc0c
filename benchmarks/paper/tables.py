"""Rows -> Markdown tables, one kind of columns per shape."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import exp
from statistics import fmean, stdev

from benchmarks.intervals import ratio_interval

from .pair import METHODS

CONTROLS = ("naive + rescale", "naive + norms", "random")
FURTHER = ("naive + chain", "one endpoint's experts", "pick", "auto + chain")  # not in the oldest rows
REPAIRED = ("auto + norms", "auto + rescale", "auto + repair")
SMALL = 0.02  # nats; per cent of less than that are noise

WORDS = {
    "first": "first layer",
    "last": "last layer",
    "all": "all layers",
    "place": "layer",
    "base": "base settings",
    "mixtral": "Mixtral",
    "qwen2_moe": "Qwen2-MoE",
    "moe_lr": "learning rate",
    "init_scale": "initial scale",
    "balance": "load balancing",
    "expert_width": "units per expert",
    "steps": "training steps",
}
"""Settings, and some of their values, as plots call them; any other by its own name."""

Row = dict
Line = list[str]


def verification(rows: Sequence[Row]) -> str:
    """Naive barrier in nats; every control and method in per cent of it; loss and accuracy of what was trained."""
    paths = (*CONTROLS, *METHODS, *REPAIRED, *(path for path in FURTHER if all(map(partial(_has, path), rows))))
    head = ["cell", "pairs", "points", "endpoint loss", "naive, nats", *paths]
    head += ["accuracy barrier: naive", "auto", "auto + norms"]
    lines = []
    for row in rows:
        naive = _values(row, "naive", "loss_barrier")
        shares = [_share(row, path) for path in paths]
        points = [_points(_values(row, path, "accuracy_barrier")) for path in ("naive", "auto", "auto + norms")]
        lines.append([*_start(row), f"{fmean(_ends(row, 'loss')):.3f}", _spread(naive, 3), *shares, *points])
    return markdown(head, lines)


def orders(rows: Sequence[Row]) -> str:
    """Rank among all n! orders, and L^ in per cent, of every method, over the pairs that have a barrier to lower."""
    head = ["cell", "pairs", "points", "naive, nats", "naive + rescale", "random", "ranked pairs"]
    head += ["best order", "worst order", *(f"{method}: rank, L^" for method in METHODS)]
    lines = []
    for row in rows:
        shares = [_share(row, path) for path in ("naive + rescale", "random")]
        ranked = {**row, "pairs": [pair for pair in row["pairs"] if "orders" in pair]}
        orders = [pair["orders"] for pair in ranked["pairs"]]
        cells = ["-"] * (2 + len(METHODS))
        if orders:
            cells = [_percent(ranked, [pair[extreme] for pair in orders]) for extreme in ("best", "worst")]
            for method in METHODS:
                places = [pair["methods"][method] for pair in orders]
                cells.append(f"{_spread([place['rank'] for place in places], 1)}, {_l_hat(places)}")
        naive = _spread(_values(row, "naive", "loss_barrier"), 3)
        lines.append([*_start(row), naive, *shares, str(len(orders)), *cells])
    return markdown(head, lines)


def depth(rows: Sequence[Row]) -> str:
    """Ratios to naive, in per cent, of loss barrier, loss AUC, accuracy barrier and accuracy AUC."""
    quantities = ("loss_barrier", "loss_auc", "accuracy_barrier", "accuracy_auc")
    head = [
        "cell",
        "pairs",
        "points",
        "naive, nats",
        "path",
        *(q.replace("_", " ").replace("auc", "AUC") for q in quantities),
    ]
    lines = []
    for row in rows:
        for path in (*CONTROLS, *METHODS, *REPAIRED):
            ratios = [_share(row, path, quantity, 0.0) for quantity in quantities]
            lines.append([*_start(row), _spread(_values(row, "naive", "loss_barrier"), 3), shown(path), *ratios])
    return markdown(head, lines)


def domains(rows: Sequence[Row]) -> str:
    """Loss on the test set of each domain: both fine-tunes, the midpoints, and the mean of their predictions."""
    paths = ("naive", *METHODS, "auto + norms", "naive + rescale", "random")
    head = ["cell", "pairs", "points", "tested on", "first fine-tune", "second fine-tune"]
    head += [f"midpoint, {path}" for path in paths] + ["mean of predictions", "barrier, naive", "barrier, auto"]
    lines = []
    for row in rows:
        for source in row["pairs"][0]["results"]:
            ends = [[pair["results"][source]["naive"]["loss"][end] for pair in row["pairs"]] for end in (0, -1)]
            middles = [_midpoints(row, path, "loss", source) for path in paths]
            together = [pair["results"][source]["ensemble"]["loss"] for pair in row["pairs"]]
            barriers = [_values(row, path, "loss_barrier", source) for path in ("naive", "auto")]
            figures = [_spread(values, 3) for values in (*ends, *middles, together, *barriers)]
            lines.append([*_start(row), source, *figures])
    return markdown(head, lines)


def study(rows: Sequence[Row]) -> str:
    """As `verification`, with the barriers of temperature-calibrated losses."""
    further = [["calibrated: naive, nats", "calibrated: aligned, nats"], ["---:"] * 2]
    for row in rows:
        further.append([_spread(_values(row, path, "calibrated_barrier"), 3) for path in ("naive", "auto")])
    table = verification(rows).splitlines()
    return "\n".join(f"{line} {' | '.join(more)} |" for line, more in zip(table, further, strict=True)) + "\n"


def paths_and_orders(rows: Sequence[Row]) -> str:
    """`verification`, and below it `orders`."""
    return f"{verification(rows)}\n{orders(rows)}"


def language(rows: Sequence[Row]) -> str:
    """As `verification`; below it, what the losses mean: the perplexity of every midpoint, mean over pairs."""
    lines = [["endpoints", *(f"{exp(fmean(_ends(row, 'loss'))):.2f}" for row in rows)]]
    for path in ("naive", *CONTROLS, *FURTHER[:-1], *METHODS, *REPAIRED, FURTHER[-1]):
        losses = [fmean(found[path]["midpoint"]["loss"] for found in _results(row)) for row in rows]
        lines.append([shown(path), *(f"{exp(loss):.2f}" for loss in losses)])
    head = ["perplexity of the midpoint", *(_start(row)[0] for row in rows)]
    return f"{verification(rows)}\n{markdown(head, lines)}"


SHAPES: dict[str, Callable[[Sequence[Row]], str]] = {
    "verification": verification,
    "orders": orders,
    "paths and orders": paths_and_orders,
    "language": language,
    "depth": depth,
    "domains": domains,
    "study": study,
}


def merging(rows: Sequence[Row]) -> str:
    """Midpoints and the mean of predictions against the mean and the best of the two endpoints."""
    head = ["cell", "pairs", "points", "tested on"]
    kinds = ("naive", "auto", "auto + norms", "mean of predictions")
    head += [f"{kind}: loss - mean, - best; accuracy - best" for kind in kinds]
    head.append("pairs where auto + norms beats both ends (loss)")
    lines = []
    for row in rows:
        for source in row["pairs"][0]["results"]:
            cells, wins = [], 0
            for kind in kinds:
                means, bests, accuracies = zip(
                    *(_gains(pair["results"][source], kind) for pair in row["pairs"]), strict=True
                )
                cells.append(f"{fmean(means):+.3f}, {fmean(bests):+.3f}; {100 * fmean(accuracies):+.1f} pp")
                wins = sum(best < 0 for best in bests) if kind == "auto + norms" else wins
            lines.append([*_start(row, table=True), source, *cells, f"{wins}/{len(row['pairs'])}"])
    return markdown(head, lines)


def accuracy_gains(rows: Sequence[Row]) -> str:
    """A sentence: accuracy of midpoints and of the mean of predictions above the mean of the two endpoints."""
    parts = []
    for kind in ("mean of predictions", "auto", "auto + norms"):
        gains = [100 * _above_mean(found, kind) for row in rows for found in _results(row)]
        parts.append(f"{shown(kind)} {fmean(gains):+.2f} pp (largest {max(gains):+.2f})")
    return f"Accuracy minus the mean of the endpoints', mean over {len(gains)} pairs: {', '.join(parts)}.\n"


def _above_mean(found: dict, kind: str) -> float:
    at = found["ensemble"] if kind == "mean of predictions" else found[kind]["midpoint"]
    return at["accuracy"] - fmean([found["naive"]["accuracy"][0], found["naive"]["accuracy"][-1]])


def markdown(head: Line, lines: Sequence[Line]) -> str:
    """A Markdown table; all columns but the first aligned to the right."""
    rules = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in ([shown(cell) for cell in head], rules, *lines))


def shown(path: str) -> str:
    """The name of a path in tables and plots, where the default order is called "aligned"."""
    return path.replace("auto + repair", "aligned + chosen repairs").replace("auto", "aligned")


def in_words(label: str) -> str:
    """The place of a cell on the axes of its table ("place=1-sparse") as plots say it ("layer 1, sparse")."""
    parts = (part.split("=") for part in label.split("-"))
    return ", ".join(" ".join([WORDS.get(key, key.replace("_", " ")), *value]) for key, *value in parts)


def _has(path: str, row: Row) -> bool:
    return all(path in found for found in _results(row))


def _gains(found: dict, kind: str) -> tuple[float, float, float]:
    at = found["ensemble"] if kind == "mean of predictions" else found[kind]["midpoint"]
    losses, accuracies = ([found["naive"][q][0], found["naive"][q][-1]] for q in ("loss", "accuracy"))
    return at["loss"] - fmean(losses), at["loss"] - min(losses), at["accuracy"] - max(accuracies)


def _start(row: Row, table: bool = False) -> Line:
    name = row["cell"]["name"]
    label = name if table else name.partition("/")[2]
    return [label, str(len(row["pairs"])), str(row["cell"]["points"])]


def _results(row: Row, source: str | None = None) -> Iterator[dict]:
    for pair in row["pairs"]:
        yield pair["results"][source] if source else next(iter(pair["results"].values()))


def _values(row: Row, path: str, quantity: str, source: str | None = None) -> list[float]:
    return [found[path][quantity] for found in _results(row, source)]


def _midpoints(row: Row, path: str, quantity: str, source: str) -> list[float]:
    return [found[path]["midpoint"][quantity] for found in _results(row, source)]


def _ends(row: Row, quantity: str) -> list[float]:
    return [found["naive"][quantity][end] for found in _results(row) for end in (0, -1)]


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{fmean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def _l_hat(ranked: Sequence[dict]) -> str:
    values = [found["l_hat"] for found in ranked if found["l_hat"] is not None]
    return _spread(values, 1) if values else "-"


def _points(values: Sequence[float]) -> str:
    return f"{100 * fmean(values):.1f} pp"


def _share(row: Row, path: str, quantity: str = "loss_barrier", smallest: float = SMALL) -> str:
    """Mean of a path, and its interval over endpoints, in per cent of the naive mean, or in nats below `smallest`."""
    return _percent(row, _values(row, path, quantity), quantity, smallest)


def _percent(row: Row, values: Sequence[float], quantity: str = "loss_barrier", smallest: float = SMALL) -> str:
    """`_share` of values that are given, one per pair."""
    naive = _values(row, "naive", quantity)
    if fmean(naive) <= smallest:
        low, high = ratio_interval(_endpoints(row), values, [1.0] * len(values))
        return f"{fmean(values):.4f} [{low:.4f}, {high:.4f}] nats" if smallest else "-"
    low, high = ratio_interval(_endpoints(row), values, naive)
    return f"{100 * sum(values) / sum(naive):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _endpoints(row: Row) -> tuple[tuple[str, str], ...]:
    return tuple((pair["pair"][0], pair["pair"][1]) for pair in row["pairs"])
