"""Plots of paths. Colour tells what was done to the other model, the dash of a line its repair."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_moe_lmc.alignment.alignment_plot import short_names, shown_ticks

from .barrier import Barrier
from .routing import Routing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "naive": "#808080",
    "units": "#e08214",
    "aligned": "#0072b2",
    "joint": "#0072b2",
    "gate": "#56b4e9",
    "random": "#cc79a7",
}
"""Variant of the other model -> colour (Okabe and Ito, for colour-blind eyes); `REST` for any other."""

REST = "#009e73"
CONTROLS = ("random", "shuffled", "pick", "reference_experts", "other_experts")
"""Variants that do not stretch the axes; faint, as are the repairs of what was not aligned."""

DASHES: dict[str, Any] = {
    "": "-",
    "norms": (0, (6, 2)),
    "gram": (0, (3, 1.5)),
    "moments": (0, (1, 1.2)),
    "rescale": (0, (5, 1.5, 1, 1.5)),
    "router": (0, (8, 2, 2, 2)),
}
"""Repair -> dash; `CHAIN` for several, one after the other."""

CHAIN: Any = (0, (7, 1.5, 1, 1.5, 1, 1.5))
WIDTH = 9.5  # inches; at 150 dots each still readable where GitHub shrinks the plot to its column
DPI = 150
LABEL_DISTANCE = 0.055  # of the height of a panel
ROOM = 0.15  # of the height that the lines take, above and below them

HEAT_MAPS = {
    "agreement_with_reference": "agreement with reference",
    "agreement_with_other": "agreement with other",
    "boundary_swaps": "k-th expert swapped",
    "load_entropy": "load entropy",
}


def plot_barriers(
    curves: Mapping[str, Sequence[Barrier]],
    file: str | Path,
    title: str = "",
    chosen: str | None = None,
    ensemble: float | None = None,
) -> None:
    """Loss and accuracy along paths; line: mean over pairs, band: lowest to highest.

    Args:
        curves: path ("naive", "aligned + norms", ...) -> one barrier per pair, all over the same points.
        file: where the plot goes; its suffix names the format.
        title: stands above.
        chosen: the path that is drawn bold.
        ensemble: loss of the endpoints' averaged predictions, a level.
    """
    from matplotlib.figure import Figure  # slow to import, and needed nowhere else

    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained", facecolor="white")
    panels = figure.subplots(1, 2)
    for panel, quantity, unit in zip(panels, ("loss", "accuracy"), (" (nats)", ""), strict=True):
        values = {path: np.array([getattr(one, quantity) for one in barriers]) for path, barriers in curves.items()}
        for path, along in values.items():
            style = line_style(path)
            if path == chosen:
                style |= {"linewidth": 2.8, "alpha": 1, "zorder": 3}
            t = curves[path][0].t
            panel.plot(t, along.mean(axis=0), label=path, **style)
            if len(along) > 1:
                panel.fill_between(
                    t, along.min(axis=0), along.max(axis=0), color=style["color"], alpha=0.12, linewidth=0
                )
        panel.set(xlabel="t  (0: reference, 1: other)", ylabel=f"test {quantity}{unit}", xlim=(0, 1))
        level = ensemble if quantity == "loss" else None
        panel.set_ylim(*_limits([along for path, along in values.items() if variant_of(path) not in CONTROLS], level))
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    _label_lines(panels[0], curves, chosen, ensemble)
    if handles := list(_dash_handles(curves)):
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, handlelength=3.2)
    figure.suptitle(title, fontsize="medium")
    figure.savefig(file, dpi=DPI)


def plot_routing(routing: Mapping[str, Routing], file: str | Path) -> None:
    """Heat maps over layers and t: one row of panels per path, one panel per figure of `Routing`.

    Every cell lies around its t and its layer.

    Args:
        routing: path -> its routing.
        file: where the plot goes; its suffix names the format.
    """
    from matplotlib.figure import Figure

    rows = max(len(path.layers) for path in routing.values())
    height = len(routing) * (1.1 + min(0.22 * rows, 4)) + 0.3
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    panels = figure.subplots(len(routing), len(HEAT_MAPS), squeeze=False, sharex=True, sharey="row")
    for line, (name, path) in zip(panels, routing.items(), strict=True):
        number = len(path.layers)
        shown = shown_ticks(number)
        for panel, quantity in zip(line, HEAT_MAPS, strict=True):
            values = np.array(getattr(path, quantity))
            mesh = panel.pcolormesh(_edges(path.t), np.arange(number + 1) - 0.5, values, vmin=0, vmax=1, cmap="cividis")
            panel.set(xticks=(0, 0.5, 1), xticklabels=("0", "½", "1"))
        labels = short_names(path.layers)
        line[0].set(yticks=shown, yticklabels=[labels[i] for i in shown], ylim=(number - 0.5, -0.5))
        line[0].set_ylabel(f"{name}\nlayer")
        figure.colorbar(mesh, ax=line[-1])
    for panel, heading in zip(panels[0], HEAT_MAPS.values(), strict=True):
        panel.set_title(heading, fontsize="medium")
    for panel in panels[-1]:
        panel.set_xlabel("t")
    figure.savefig(file, dpi=DPI)


def variant_of(path: str) -> str:
    """The variant of the other model that `path` leads to."""
    return path.partition(" + ")[0]


def line_style(path: str) -> dict[str, Any]:
    """Keywords of matplotlib for the line of `path`: its variant's colour, its repair's dash; controls faintly."""
    variant, _, repairs = path.partition(" + ")
    faint = variant in CONTROLS or (variant in ("naive", "units") and repairs)
    return {
        "color": COLOURS.get(variant, REST),
        "linestyle": DASHES.get(repairs, CHAIN),
        "linewidth": 1 if faint else 1.6,
        "alpha": 0.5 if faint else 1,
    }


def _limits(values: Sequence[np.ndarray], level: float | None) -> tuple[float | None, float | None]:
    """Limits of an axis that hold all finite values, with room for labels; None where there are none."""
    finite = [x for along in values for x in along.flatten() if np.isfinite(x)]
    if not finite:
        return None, None
    low, high = min([*finite, *([] if level is None else [level])]), max(finite)
    room = ROOM * ((high - low) or 1)  # a level line has a height, too
    return low - room, high + room


def _label_lines(
    panel: "Axes", curves: Mapping[str, Sequence[Barrier]], chosen: str | None, ensemble: float | None
) -> None:
    """Name every variant, and in bold the chosen path, above the middle of its line; below its own, the ensemble."""
    low, high = panel.get_ylim()
    heights: dict[str, float] = {}
    for path in curves:
        if path in (variant_of(path), chosen):
            middle = int(np.argmin(np.abs(np.array(curves[path][0].t) - 0.5)))
            height = float(np.mean([barrier.loss[middle] for barrier in curves[path]]))
            # A line that leaves the panel, or fails, is named at its upper edge.
            heights[path] = min((height - low) / (high - low), 1.0) if np.isfinite(height) else 1.0
    above = sorted(heights, key=heights.__getitem__)
    places = _apart([heights[path] + LABEL_DISTANCE * 0.6 for path in above])
    for path, place in zip(above, places, strict=True):
        weight = "bold" if path == chosen else "normal"
        _label(panel, 0.5, place, path, line_style(path)["color"], fontweight=weight)
    if ensemble is not None:
        panel.axhline(ensemble, color="black", linewidth=0.8, linestyle=(0, (1, 3)))
        level = (ensemble - low) / (high - low) - LABEL_DISTANCE * 0.6
        _label(panel, 0.5, level, "ensemble of the endpoints", "black")


def _label(panel: "Axes", x: float, y: float, text: str, colour: str, fontweight: str = "normal") -> None:
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3, foreground="white")]
    panel.text(
        x, y, text, color=colour, transform=panel.transAxes, path_effects=halo, fontweight=fontweight,
        ha="center", va="center", fontsize="small", zorder=4,
    )  # fmt: skip


def _apart(heights: Sequence[float]) -> list[float]:
    """Ascending heights moved up, and then down from the top, until neighbours are `LABEL_DISTANCE` apart."""
    places: list[float] = []
    for height in heights:
        places.append(max(height, places[-1] + LABEL_DISTANCE) if places else height)
    ceiling = 1.0
    for i in range(len(places) - 1, -1, -1):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - LABEL_DISTANCE
    return places


def _dash_handles(curves: Mapping[str, Sequence[Barrier]]) -> Iterator[Any]:
    """What the dashes mean, where there are several."""
    from matplotlib.lines import Line2D

    repairs = dict.fromkeys(path.partition(" + ")[2] for path in curves)
    if list(repairs) != [""]:
        for repair in repairs:
            yield Line2D([], [], color="#404040", linestyle=DASHES.get(repair, CHAIN), label=repair or "no repair")


def _edges(centres: Sequence[float]) -> np.ndarray:
    """Borders half-way between cells, the outer ones as far from their centres as the inner ones."""
    t = np.asarray(centres)
    inner = (t[1:] + t[:-1]) / 2
    return np.array([2 * t[0] - inner[0], *inner, 2 * t[-1] - inner[-1]])
