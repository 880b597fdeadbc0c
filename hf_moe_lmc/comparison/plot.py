"""The picture of a comparison."""

from pathlib import Path
from typing import TYPE_CHECKING

from .comparison import Comparison
from .kinds import Kind
from .layers import LayerComparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe-Ito, and greys for what is not there.
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
_MOST_NUMBERS = 32  # experts across, above which numbers cannot be read
_ROUTERS = {"unmoved": "", "with experts": "router with experts", "without experts": "ROUTER WITHOUT EXPERTS",
            "changed": "router changed", "unrelated": "ROUTER UNRELATED"}  # fmt: skip

Cell = tuple[Kind | str, int | None]
"""Kind, and the slot in B; None of a missing expert."""


def plot_comparison(comparison: Comparison, file: str | Path) -> None:
    """Layers down, experts of A across; the colour says what became of each, a number in which slot of B it is now.

    Slots that hold no expert of A, or a copy of one, stand where experts are missing, and then to the right of the
    line.

    Args:
        comparison: what to show; without layers, the picture only says so.
        file: where the picture goes; its suffix names the format.
    """
    from matplotlib.figure import Figure  # heavy, and needed nowhere else

    rows = [layer_cells(layer) for layer in comparison.layers]
    width = max((len(cells) for cells in rows), default=1)
    numbers = width <= _MOST_NUMBERS
    cell = 0.42 if numbers else 13.0 / width
    height = 0.36 if numbers or len(rows) < 12 else max(0.16, 7.5 / len(rows))
    size = (max(6.5, 3.4 + cell * width), max(2.6, 1.9 + height * len(rows)))
    figure = Figure(figsize=size, layout="constrained")
    panel = figure.subplots()
    _draw(panel, rows, width, numbers)
    panel.set_yticks(range(len(rows)), [layer.name for layer in comparison.layers], fontsize=8 if height > 0.2 else 6)
    for row, layer in enumerate(comparison.layers):
        if layer.router != "unmoved":
            panel.text(width - 0.3, row, _ROUTERS[layer.router], fontsize=8 if height > 0.2 else 5, va="center")
    experts = max((layer.num_experts for layer in comparison.layers), default=0)
    if width > experts:
        panel.axvline(experts - 0.5, color="black", linewidth=1)
    panel.set_xlabel("expert of A" + (" (number: its slot in B, where that is another)" if numbers else ""))
    panel.set_title(comparison.sentences[0], fontsize=9, loc="left", wrap=True)
    _legend(panel, rows)
    figure.savefig(file, dpi=150)


def layer_cells(layer: LayerComparison) -> list[Cell]:
    """What stands in the picture's row of a layer."""
    cells: list[Cell] = [("missing", None)] * layer.num_experts
    left = []
    for expert in layer.experts:
        if expert.source is not None and expert.kind != "copied" and cells[expert.source][1] is None:
            cells[expert.source] = (expert.kind, expert.slot)
        else:
            left.append(expert)
    beyond: list[Cell] = []
    for expert in left:
        if expert.slot < len(cells) and cells[expert.slot][1] is None:
            cells[expert.slot] = (expert.kind, expert.slot)
        else:
            beyond.append((expert.kind, expert.slot))
    for number, cell in enumerate(cells):
        if cell[1] is None and beyond and len(layer.experts) == layer.num_experts:
            cells[number] = beyond.pop(0)
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
                    linewidth=0.8 if numbers else 0.2,
                    hatch="////" if missing and numbers else None,
                )
            )
            if numbers and slot is not None and slot != column:
                colour = "white" if kind in _DARK else "black"
                panel.text(column, row, str(slot), ha="center", va="center", fontsize=8, color=colour)
    panel.set(xlim=(-0.5, width - 0.5), ylim=(max(1, len(rows)) - 0.5, -0.5))
    for side in ("top", "right", "left", "bottom"):
        panel.spines[side].set_visible(False)
    panel.tick_params(length=0)


def _legend(panel: "Axes", rows: list[list[Cell]]) -> None:
    from matplotlib.patches import Patch

    shown = {kind for cells in rows for kind, _ in cells}
    patches = [
        Patch(facecolor=colour, edgecolor="#999999", label=kind.replace("_", " "))
        for kind, colour in COLOURS.items()
        if kind in shown
    ]
    if patches:
        panel.legend(
            handles=patches, frameon=False, fontsize=8, ncols=min(5, len(patches)), loc="upper center",
            bbox_to_anchor=(0.5, -0.12 if len(rows) > 8 else -0.35),
        )  # fmt: skip
