"""The study as pictures: naive and aligned barriers against every setting."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from .grid import Table

DRAWN = ("naive", "naive + norms", "units", "auto", "auto + norms")


def plot_study(table: Table, rows: Mapping[str, dict], file: Path) -> None:
    """One panel per setting: mean loss barriers over pairs, nats; logarithmic above 0.01.

    Args:
        table: of the shape "study".
        rows: by name of their cell; settings of which only the base was run are left out.
        file: where the picture goes.
    """
    from matplotlib.figure import Figure  # heavy, and needed nowhere else

    base, *others = ((cell.name, rows.get(cell.name)) for cell in table.cells)
    found: dict[str, list[dict]] = {}
    for name, row in others:
        if row and base[1]:
            found.setdefault(name.partition("/")[2].partition("=")[0], [base[1]]).append(row)
    panels = {key: sorted(values, key=lambda row: row["cell"][key]) for key, values in found.items()}
    if not panels:
        return
    figure = Figure(figsize=(3.4 * len(panels), 3.6), layout="constrained")
    for axis, (key, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        labels = [str(row["cell"][key]) for row in values]
        for path in DRAWN:
            axis.plot(labels, [_mean(row, path) for row in values], marker="o", label=path)
        axis.set(xlabel=key.replace("_", " "))
        axis.set_yscale("symlog", linthresh=0.01)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.axes[0].set(ylabel="loss barrier, nats")
    figure.axes[0].legend(frameon=False, fontsize="small")
    figure.suptitle(table.title)
    figure.savefig(file, dpi=110)


def _mean(row: dict, path: str) -> float:
    return fmean(found[path]["loss_barrier"] for pair in row["pairs"] for found in pair["results"].values())
