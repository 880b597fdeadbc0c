"""The plot of an alignment."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.matching import LayerAlignment

from .alignment import Alignment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BEFORE, _AFTER, _RANDOM = "#808080", "#0072b2", "#cc79a7"  # as in the plots of paths
_SIZE = (9.5, 4.2)  # inches; at 150 dots each still readable where GitHub shrinks the plot to its column
MOST_LABELS = 16  # of an axis


def plot_alignment(alignment: Alignment, file: str | Path, layer: str | None = None) -> None:
    """Distances of all layers, and of one layer the fit of every pair of experts as a heat map.

    Distances: before and after, and what the best of several random symmetric rewrites reaches
    (`LayerEvidence.random_distance`, an estimate). Heat map: `LayerAlignment.expert_table`, the experts of the other in
    the order of their partners, which are on the diagonal.

    Args:
        alignment: found by matching; of any other, there are distances only.
        file: where the plot goes; its suffix names the format.
        layer: name of the layer of the heat map; None takes the first whose experts were compared.

    Raises:
        BadInputError: the experts of `layer` were not compared.
    """
    from matplotlib.figure import Figure  # heavy, and needed nowhere else

    compared = {name: table for name, found in alignment.layers.items() if (table := found.expert_table) is not None}
    if layer is not None and layer not in compared:
        raise BadInputError(f"no experts were compared in {layer}; choose one of: {', '.join(compared) or 'none'}")
    figure = Figure(figsize=_SIZE, layout="constrained", facecolor="white")
    panels = figure.subplots(1, 1 + bool(compared), squeeze=False)[0]
    _draw_distances(panels[0], alignment)
    if compared:
        name = layer or next(iter(compared))
        _draw_experts(panels[1], name, alignment.layers[name], compared[name])
    figure.savefig(file, dpi=150)


def shown_ticks(number: int) -> range:
    """Evenly spaced places of an axis of so many cells, few enough to be read."""
    return range(0, number, -(-number // MOST_LABELS) or 1)


def short_names(layers: Sequence[str]) -> list[str]:
    """Names of layers without the parts that they all have in common, such as `model.layers.` and `.mlp`."""
    parts = [name.split(".") for name in layers]
    if len(parts) < 2 or len({len(part) for part in parts}) > 1:
        return list(layers)
    differing = [i for i, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
    return [".".join(part[differing[0] : differing[-1] + 1]) for part in parts]


def _draw_distances(panel: "Axes", alignment: Alignment) -> None:
    layers, names = list(alignment.layers.values()), short_names(list(alignment.layers))
    places = list(range(len(layers)))
    dots = "o" if len(layers) <= MOST_LABELS else None
    control = {place: evidence.random_distance for place in places if (evidence := layers[place].evidence)}
    if control:
        style: dict[str, Any] = {"marker": "_", "markersize": 14, "linestyle": "none"} if dots else {"linewidth": 1}
        panel.plot(list(control), list(control.values()), color=_RANDOM, label="units in a random order", **style)
    for colour, label in ((_BEFORE, "before"), (_AFTER, "after")):
        heights = [getattr(layer, f"distance_{label}") for layer in layers]
        panel.plot(places, heights, color=colour, marker=dots, linewidth=1.6, label=f"{label} alignment")
    ticks = shown_ticks(len(layers))
    panel.set(xlabel="layer", ylabel="distance to the reference", xlim=(-0.5, len(layers) - 0.5))
    panel.set_ylim(bottom=0)
    long = max(map(len, names), default=0) > 4 and len(names) > 1
    panel.set_xticks(ticks, [names[i] for i in ticks], rotation=90 if long else 0)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, ncols=3, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1))


def _draw_experts(panel: "Axes", name: str, layer: LayerAlignment, table: Tensor) -> None:
    order, ticks = layer.symmetry.experts.index.tolist(), shown_ticks(len(table))
    image = panel.imshow(table[:, order].numpy(), cmap="cividis", interpolation="nearest")
    method = f"\nexpert order {layer.evidence.expert_method}" if layer.evidence else ""
    panel.set_title(f"{name}{method}", fontsize="medium")
    panel.set(xlabel="expert of the other, in the order found", ylabel="expert of the reference")
    panel.set_xticks(
        ticks, [str(order[i]) for i in ticks], fontsize="small", rotation=90 if len(order) > MOST_LABELS else 0
    )
    panel.set_yticks(ticks, [str(i) for i in ticks], fontsize="small")
    panel.figure.colorbar(image, ax=panel, label="fit  (higher: more alike)")
