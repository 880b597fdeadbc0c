"""The plot of an alignment."""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.matching import LayerAlignment

from .alignment import Alignment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MATCHED, _RANDOM = "#0072B2", "#D55E00"  # Okabe-Ito
_BEFORE = "#999999"


def plot_alignment(alignment: Alignment, file: str | Path, layer: str | None = None) -> None:
    """Distances of all layers as bars, and of one layer the similarity of every pair of experts as a heat map.

    Bars: distance before and after, and a mark at what the best of several random symmetric rewrites reaches
    (`LayerEvidence.random_distance`, an estimate). Heat map: `LayerAlignment.expert_table`, the partners ringed.

    Args:
        alignment: found by matching; of any other, there are bars only.
        file: where the picture goes; its suffix names the format.
        layer: name of the layer of the heat map; None takes the first whose experts were compared.

    Raises:
        BadInputError: the experts of `layer` were not compared.
    """
    from matplotlib.figure import Figure  # heavy, and needed nowhere else

    compared = {name: table for name, found in alignment.layers.items() if (table := found.expert_table) is not None}
    if layer is not None and layer not in compared:
        raise BadInputError(f"no experts were compared in {layer}; choose one of: {', '.join(compared) or 'none'}")
    width = max(4.0, 1.5 + 0.35 * len(alignment.layers))
    figure = Figure(figsize=(width + 5.5 * bool(compared), 4.5), layout="constrained")
    ratios = [width, 5.5][: 1 + bool(compared)]
    panels = figure.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
    _draw_distances(panels[0], alignment)
    if compared:
        name = layer or next(iter(compared))
        _draw_experts(panels[1], name, alignment.layers[name], compared[name])
    figure.savefig(file, dpi=150)


def _draw_distances(panel: "Axes", alignment: Alignment) -> None:
    layers = list(alignment.layers.values())
    places = range(len(layers))
    for offset, colour, label in ((-0.2, _BEFORE, "before"), (0.2, _MATCHED, "after")):
        heights = [getattr(layer, f"distance_{label}") for layer in layers]
        panel.bar([place + offset for place in places], heights, 0.4, color=colour, label=label)
    random = {
        place: layer.evidence.random_distance for place, layer in zip(places, layers, strict=True) if layer.evidence
    }
    if random:
        label = "random rewrite"
        panel.scatter(list(random), list(random.values()), 200, _RANDOM, marker="_", zorder=3, label=label)
    panel.set(ylabel="distance to the reference")
    panel.set_xticks(places, alignment.layers, rotation=90, fontsize="x-small")
    panel.legend(frameon=False, ncols=3, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1))


def _draw_experts(panel: "Axes", name: str, layer: LayerAlignment, table: Tensor) -> None:
    from matplotlib.ticker import MaxNLocator

    order = layer.symmetry.experts.index
    image = panel.imshow(table.numpy(), cmap="cividis")
    panel.scatter(order, range(len(order)), (panel.bbox.width / len(order) / 3) ** 2, "none", edgecolors=_RANDOM)
    method = f", by {layer.evidence.expert_method}" if layer.evidence else ""
    panel.set(title=f"{name}{method}", xlabel="expert of the other", ylabel="expert of the reference")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    panel.figure.colorbar(image, ax=panel, label="greater fits better")
