"""Plots of tables: the loss along the paths of every cell; the barriers of a study against every setting."""

from collections.abc import Callable, Mapping
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hf_moe_lmc.connectivity.plot import line_style

from .grid import Table
from .tables import in_words, shown

PATHS = ("naive", "naive + norms", "auto", "auto + norms")
STUDIED = ("naive", "naive + norms", "units", "auto", "auto + norms")
WIDTH, NARROWEST = 10, 6.5  # inches, of a figure
COLUMNS = 5  # of a study
LEAST_HEIGHT = 0.05  # nats; panels of less would show noise as hills


def plot_paths(table: Table, rows: Mapping[str, dict]) -> Figure | None:
    """One panel per cell that was run: test loss along the paths, mean and range over pairs, nats.

    Columns are numbers of experts; where there is only one, all panels lie side by side.

    Args:
        table: of the shape "verification".
        rows: by name of their cell; no plot is without rows.
    """
    cells = [cell for cell in table.cells if cell.name in rows]
    if not cells:
        return None
    kinds = {cell: cell.name.partition("/")[2].removeprefix(f"experts={cell.experts}-") for cell in cells}
    counts, lines = sorted({cell.experts for cell in cells}), list(dict.fromkeys(kinds.values()))
    places = {cell: (lines.index(kinds[cell]), counts.index(cell.experts)) for cell in cells}
    titles, names = [f"{count} experts" for count in counts], [f"{in_words(line)}\n" for line in lines]
    if len(counts) == 1:
        places = {cell: (0, line) for cell, (line, _) in places.items()}
        titles, names = [in_words(line) for line in lines], [""]
    size = (max(NARROWEST, min(WIDTH, 2.5 * len(titles))), 1.6 * len(names) + 1)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    panels = figure.subplots(len(names), len(titles), squeeze=False, sharex=True, sharey="row")
    for axis, title in zip(panels[0], titles, strict=True):
        axis.set_title(title, fontsize="medium")
    for axis, name in zip(panels[:, 0], names, strict=True):
        axis.set_ylabel(f"{name}loss, nats", fontsize="small")
    for axis in panels[-1]:
        axis.set(xlabel="t", xticks=(0, 0.5, 1))
    for place, axis in np.ndenumerate(panels):
        axis.set_visible(place in places.values())
    for cell, place in places.items():
        for path in PATHS:
            losses = np.array(
                [found[path]["loss"] for pair in rows[cell.name]["pairs"] for found in pair["results"].values()]
            )
            t, style = np.linspace(0, 1, losses.shape[1]), line_style(shown(path))
            panels[place].plot(t, losses.mean(0), label=shown(path), **style)
            panels[place].fill_between(t, losses.min(0), losses.max(0), color=style["color"], alpha=0.12, linewidth=0)
    for axis in panels[:, 0]:
        low, high = axis.get_ylim()
        room = max(0, LEAST_HEIGHT - (high - low)) / 2
        axis.set_ylim(low - room, high + room)
    _legend(figure, PATHS)
    figure.suptitle(table.title)
    return figure


def plot_study(table: Table, rows: Mapping[str, dict]) -> Figure | None:
    """One panel per setting: mean loss barriers over pairs, nats; logarithmic above 0.01.

    Args:
        table: of the shape "study".
        rows: by name of their cell; settings of which only the base was run are left out, and no plot is of none.
    """
    base, *others = ((cell.name, rows.get(cell.name)) for cell in table.cells)
    found: dict[str, list[dict]] = {}
    for name, row in others:
        if row and base[1]:
            found.setdefault(name.partition("/")[2].partition("=")[0], [base[1]]).append(row)
    settings = {key: sorted(values, key=lambda row: row["cell"][key]) for key, values in found.items()}
    if not settings:
        return None
    columns = min(len(settings), COLUMNS)
    lines = -(-len(settings) // columns)
    size = (max(NARROWEST, WIDTH * columns / COLUMNS), 2.4 * lines + 0.8)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis in panels.flatten()[len(settings) :]:
        axis.remove()
    for axis, (key, values) in zip(panels.flatten(), settings.items(), strict=False):
        labels = [str(row["cell"][key]) for row in values]
        for path in STUDIED:
            axis.plot(
                labels, [_mean(row, path) for row in values], marker=".", label=shown(path), **line_style(shown(path))
            )
        axis.set_title(in_words(key), fontsize="medium")
        axis.tick_params(axis="x", labelsize="small")
        axis.set_yscale("symlog", linthresh=0.01)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.25)
    for axis in panels[:, 0]:
        axis.set(ylabel="loss barrier, nats")
        axis.set_ylim(bottom=0)  # after the last line, for it ends the automatic limits
    _legend(figure, STUDIED)
    figure.suptitle(table.title)
    return figure


def _legend(figure: Figure, paths: tuple[str, ...]) -> None:
    handles = [Line2D([], [], label=shown(path), **line_style(shown(path))) for path in paths]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(paths), frameon=False, handlelength=3)


def _mean(row: dict, path: str) -> float:
    return fmean(found[path]["loss_barrier"] for pair in row["pairs"] for found in pair["results"].values())


PLOTS: dict[str, Callable[[Table, Mapping[str, dict]], Figure | None]] = {
    "verification": plot_paths,
    "language": plot_paths,
    "study": plot_study,
}
