"""Pictures of paths."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .barrier import Barrier

# Okabe-Ito, readable with colour-blind eyes and in this order.
COLOURS = ("#000000", "#999999", "#E69F00", "#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#D55E00")


def plot_barriers(curves: Mapping[str, Sequence[Barrier]], file: str | Path, title: str = "") -> None:
    """Loss and accuracy along the path, one colour per method; line: mean over pairs, band: lowest to highest.

    Args:
        curves: method -> one path per pair, all over the same points.
        file: where the picture goes; its suffix names the format.
        title: stands above.
    """
    from matplotlib.figure import Figure  # heavy, and needed nowhere else

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, quantity, unit in zip(panels, ("loss", "accuracy"), (" (nats)", ""), strict=True):
        for colour, (method, barriers) in zip(COLOURS, curves.items(), strict=False):
            values = np.array([getattr(barrier, quantity) for barrier in barriers])
            t = barriers[0].t
            panel.plot(t, values.mean(axis=0), color=colour, label=method)
            panel.fill_between(t, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.12, linewidth=0)
        panel.set(xlabel="t  (0: reference, 1: other)", ylabel=f"test {quantity}{unit}", xlim=(0, 1))
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(file, dpi=150)
