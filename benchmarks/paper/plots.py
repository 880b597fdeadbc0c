"""Pictures of tables: the loss along the paths of every cell; the barriers of a study against every setting."""

from collections.abc import Callable, Mapping
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure

from .grid import Table

PATHS = ("naive", "naive + norms", "auto", "auto + norms")
STUDIED = ("naive", "naive + norms", "units", "auto", "auto + norms")


def plot_paths(table: Table, rows: Mapping[str, dict]) -> Figure | None:
    """One panel per cell, in rows by number of experts: test loss along the paths, mean and range over pairs, nats.

    Args:
        table: of the shape "verification".
        rows: by name of their cell; the panel of a cell that is missing stays empty, and no picture is without rows.
    """
    if not any(cell.name in rows for cell in table.cells):
        return None
    labels = {cell: cell.name.partition("/")[2].removeprefix(f"experts={cell.experts}-") for cell in table.cells}
    counts, columns = sorted({cell.experts for cell in table.cells}), list(dict.fromkeys(labels.values()))
    figure = Figure(figsize=(max(6, 1.9 * len(columns) + 1), 1.7 * len(counts) + 1), layout="constrained")
    panels = figure.subplots(len(counts), len(columns), squeeze=False, sharex=True, sharey="row")
    for axis, label in zip(panels[0], columns, strict=True):
        axis.set_title(label, fontsize="medium")
    for axis, count in zip(panels[:, 0], counts, strict=True):
        axis.set(ylabel=f"{count} experts\nloss, nats")
    for axis in panels[-1]:
        axis.set(xlabel="t")
    for cell in (cell for cell in table.cells if cell.name in rows):
        axis = panels[counts.index(cell.experts), columns.index(labels[cell])]
        for path in PATHS:
            losses = np.array(
                [found[path]["loss"] for pair in rows[cell.name]["pairs"] for found in pair["results"].values()]
            )
            t = np.linspace(0, 1, losses.shape[1])
            (line,) = axis.plot(t, losses.mean(0), label=path)
            axis.fill_between(t, losses.min(0), losses.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
        handles = axis.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(PATHS), frameon=False)
    figure.suptitle(table.title)
    return figure


def plot_study(table: Table, rows: Mapping[str, dict]) -> Figure | None:
    """One panel per setting: mean loss barriers over pairs, nats; logarithmic above 0.01.

    Args:
        table: of the shape "study".
        rows: by name of their cell; settings of which only the base was run are left out, and no picture is of none.
    """
    base, *others = ((cell.name, rows.get(cell.name)) for cell in table.cells)
    found: dict[str, list[dict]] = {}
    for name, row in others:
        if row and base[1]:
            found.setdefault(name.partition("/")[2].partition("=")[0], [base[1]]).append(row)
    panels = {key: sorted(values, key=lambda row: row["cell"][key]) for key, values in found.items()}
    if not panels:
        return None
    figure = Figure(figsize=(3.4 * len(panels), 3.6), layout="constrained")
    for axis, (key, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        labels = [str(row["cell"][key]) for row in values]
        for path in STUDIED:
            axis.plot(labels, [_mean(row, path) for row in values], marker="o", label=path)
        axis.set(xlabel=key.replace("_", " "))
        axis.set_yscale("symlog", linthresh=0.01)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.axes[0].set(ylabel="loss barrier, nats")
    figure.axes[0].legend(frameon=False, fontsize="small")
    figure.suptitle(table.title)
    return figure


def _mean(row: dict, path: str) -> float:
    return fmean(found[path]["loss_barrier"] for pair in row["pairs"] for found in pair["results"].values())


PICTURES: dict[str, Callable[[Table, Mapping[str, dict]], Figure | None]] = {
    "verification": plot_paths,
    "study": plot_study,
}
