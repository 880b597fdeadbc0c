"""The plot of a comparison."""

from pathlib import Path
from typing import TYPE_CHECKING

from hf_moe_lmc.alignment.alignment_plot import MOST_LABELS, short_names, shown_ticks

from .comparison import Comparison
from .fit import Kind
from .layers import LayerComparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe-Ito: blues for what is A's, warm colours for what is not as it should be.
COLOURS: dict[Kind | str, str] = {
    "identical": "#DCE9F2",
    "rounded": "#A9CDE3",
    "changed": "#56B4E9",
    "moved": "#0072B2",
    "copied": "#E69F00",
    "scaled": "#F0E442",
    "gate_up_swapped": "#CC79A7",
    "interleaving": "#8E5572",
    "transposed": "#009E73",
    "unrelated": "#D55E00",
    "zero": "#777777",
    "not_finite": "#000000",
    "missing": "#FFFFFF",
}
_DARK = {"moved", "interleaving", "transposed", "unrelated", "zero", "not_finite"}
_LEGEND = {
    "moved": "moved to another slot",
    "gate_up_swapped": "gate and up swapped",
    "interleaving": "gate and up interleaved",
    "not_finite": "not finite",
}
_MOST_NUMBERS = 32  # experts across, above which numbers cannot be read
_MOST_COLUMNS = 6  # of the legend
_ROUTERS = {
    "with experts": "router with its experts",
    "without experts": "router not in the order of the experts",
    "changed": "router changed",
    "unrelated": "router unrelated",
}

Cell = tuple[Kind | str, int | None]
"""Kind, and the slot in B; None of a missing expert."""


def plot_comparison(comparison: Comparison, file: str | Path) -> None:
    """Layers down, experts of A across; the colour says what became of each, a number in which slot of B it is now.

    Slots that hold no expert of A, or a copy of one, fill the places of missing experts, and go on behind a line.

    Args:
        comparison: the result of `compare`.
        file: where the plot goes; its suffix names the format.
    """
    from matplotlib.figure import Figure  # heavy, and needed nowhere else
    from matplotlib.ticker import MaxNLocator

    rows = [layer_cells(layer) for layer in comparison.layers]
    width = max((len(cells) for cells in rows), default=1)
    numbers = width <= _MOST_NUMBERS
    few = len(rows) <= MOST_LABELS
    height = 0.34 if few else max(0.13, 5.5 / len(rows))  # inches
    size = (min(max(7.0, 4.2 + 0.34 * width), 9.5), 1.9 + height * max(1, len(rows)))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    panel = figure.subplots()
    _draw(panel, rows, width, numbers)
    names, ticks = short_names([layer.name for layer in comparison.layers]), shown_ticks(len(rows))
    panel.set_yticks(ticks, [names[i] for i in ticks])
    panel.set_ylabel("layer", fontsize=9)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=min(width, MOST_LABELS)))
    for row, layer in enumerate(comparison.layers):
        if few or layer.router != "with experts":
            panel.text(width - 0.3, row, _ROUTERS.get(layer.router, ""), fontsize=8 if few else 6, va="center")
    experts = max((layer.num_experts for layer in comparison.layers), default=width)
    if width > experts:
        panel.axvline(experts - 0.5, color="black", linewidth=1)
    panel.set_xlabel(f"expert of A{' (number: its slot in B, where that is another)' if numbers else ''}", fontsize=9)
    figure.suptitle(comparison.sentences[0], fontsize=9, wrap=True)
    _legend(panel, rows)
    figure.savefig(file, dpi=150)


def layer_cells(layer: LayerComparison) -> list[Cell]:
    """The cells of a layer's row: experts of A in their order, then what of B has no place among them."""
    cells: list[Cell] = [("missing", None)] * layer.num_experts
    others = []
    for expert in layer.experts:
        if expert.source is not None and expert.kind != "copied" and cells[expert.source][1] is None:
            cells[expert.source] = (expert.kind, expert.slot)
        else:
            others.append(expert)
    beyond: list[Cell] = []
    for expert in others:
        if expert.slot < len(cells) and cells[expert.slot][1] is None:
            cells[expert.slot] = (expert.kind, expert.slot)
        else:
            beyond.append((expert.kind, expert.slot))
    if len(layer.experts) == layer.num_experts:
        cells = [cell if cell[1] is not None else beyond.pop(0) for cell in cells]
    return [*cells, *beyond]


def _draw(panel: "Axes", rows: list[list[Cell]], width: int, numbers: bool) -> None:
    from matplotlib.patches import Rectangle

    for row, cells in enumerate(rows):
        for column, (kind, slot) in enumerate(cells):
            missing = kind == "missing"
            panel.add_patch(
                Rectangle(
                    (column - 0.5, row - 0.5),
                    1,
                    1,
                    facecolor=COLOURS[kind],
                    edgecolor="#999999" if missing else "white",
                    linewidth=0.8 if numbers else 0,
                    hatch="////" if missing and numbers else None,
                )
            )
            if numbers and slot is not None and slot != column:
                colour = "white" if kind in _DARK else "black"
                panel.text(column, row, str(slot), ha="center", va="center", fontsize=8, color=colour)
    panel.set(xlim=(-0.5, width - 0.5), ylim=(max(1, len(rows)) - 0.5, -0.5))
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0, labelsize=8)


def _legend(panel: "Axes", rows: list[list[Cell]]) -> None:
    from matplotlib.patches import Patch

    shown = {kind for cells in rows for kind, _ in cells}
    patches = [
        Patch(facecolor=colour, edgecolor="#999999", label=_LEGEND.get(kind, kind))
        for kind, colour in COLOURS.items()
        if kind in shown
    ]
    if patches:
        panel.figure.legend(
            handles=patches,
            frameon=False,
            fontsize=8,
            ncols=min(len(patches), _MOST_COLUMNS),
            loc="outside lower center",
        )
