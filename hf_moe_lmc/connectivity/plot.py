"""Pictures of paths."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from .barrier import Barrier
from .routing import Routing

# Okabe-Ito, readable with colour-blind eyes and in this order.
COLOURS = ("#000000", "#999999", "#E69F00", "#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#D55E00")
LINES = ("-", "--", ":", "-.")
LEGEND_ROWS = 16

HEAT_MAPS = {
    "agreement_with_reference": "agreement with the reference",
    "agreement_with_other": "agreement with the other",
    "boundary_swaps": "k-th expert swapped",
    "load_entropy": "load entropy",
}


def plot_barriers(curves: Mapping[str, Sequence[Barrier]], file: str | Path, title: str = "") -> None:
    """Loss and accuracy along the path, one colour per method; line: mean over pairs, band: lowest to highest.

    From the ninth method on, lines are dashed, then dotted.

    Args:
        curves: method -> one path per pair, all over the same points.
        file: where the picture goes; its suffix names the format.
        title: stands above.
    """
    from matplotlib.figure import Figure  # heavy, and needed nowhere else

    columns = -(-len(curves) // LEGEND_ROWS)
    figure = Figure(figsize=(10 + 3 * columns, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, quantity, unit in zip(panels, ("loss", "accuracy"), (" (nats)", ""), strict=True):
        for (line, colour), (method, barriers) in zip(product(LINES, COLOURS), curves.items(), strict=False):
            values = np.array([getattr(barrier, quantity) for barrier in barriers])
            t = barriers[0].t
            panel.plot(t, values.mean(axis=0), color=colour, linestyle=line, label=method)
            panel.fill_between(t, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.12, linewidth=0)
        panel.set(xlabel="t  (0: reference, 1: other)", ylabel=f"test {quantity}{unit}", xlim=(0, 1))
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, ncols=columns)
    figure.suptitle(title)
    figure.savefig(file, dpi=150)


def plot_routing(routing: Mapping[str, Routing], file: str | Path) -> None:
    """Heat maps over layers and t: one row of panels per path, one panel per figure of `Routing`.

    Args:
        routing: path -> its routing.
        file: where the picture goes; its suffix names the format.
    """
    from matplotlib.figure import Figure

    rows = max(len(found.layers) for found in routing.values())
    figure = Figure(figsize=(15, len(routing) * (1.2 + 0.25 * rows)), layout="constrained")
    panels = figure.subplots(len(routing), len(HEAT_MAPS), squeeze=False)
    for line, (path, found) in zip(panels, routing.items(), strict=True):
        for panel, (quantity, title) in zip(line, HEAT_MAPS.items(), strict=True):
            values = np.array(getattr(found, quantity))
            image = panel.imshow(values, aspect="auto", vmin=0, vmax=1, extent=(0, 1, len(values), 0), cmap="cividis")
            panel.set(title=title, xlabel="t", yticks=np.arange(len(values)) + 0.5, yticklabels=[])
        line[0].set(ylabel=path, yticklabels=found.layers)
        figure.colorbar(image, ax=line[-1])
    figure.savefig(file, dpi=150)
