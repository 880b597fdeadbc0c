import math
from itertools import pairwise

import pytest
from matplotlib.figure import Figure

from hf_moe_lmc.connectivity import Barrier, plot_barriers
from hf_moe_lmc.connectivity.plot import LABEL_DISTANCE, line_style, plot_routing
from hf_moe_lmc.connectivity.routing import Routing

T = (0.0, 0.25, 0.5, 0.75, 1.0)


def path(height: float) -> Barrier:
    rises = (0.0, 0.7, 1.0, 0.7, 0.0)
    return Barrier(T, tuple(1 + height * rise for rise in rises), tuple(0.9 - height * rise / 4 for rise in rises))


CURVES = {
    "naive": [path(1.0), path(1.2)],
    "naive + norms": [path(0.5), path(0.6)],
    "random": [path(5.0), path(6.0)],
    "units": [path(0.3), path(0.3)],
    "aligned": [path(0.29), path(0.3)],
    "aligned + norms": [path(0.1), path(0.1)],
    "aligned + norms + gram": [path(0.02), path(0.04)],
}


@pytest.fixture
def drawn(monkeypatch):
    """Draws, and gives the figure instead of the file."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, dpi: figures.append(figure))

    def draw(plot, *arguments):
        plot(*arguments)
        figures[-1].canvas.draw()
        return figures[-1]

    return draw


def lines(panel) -> dict:
    return {line.get_label(): line for line in panel.lines if not line.get_label().startswith("_")}


def labels(panel) -> dict:
    return {text.get_text(): text for text in panel.texts}


def test_colour_tells_the_variant_and_dash_the_repair(drawn):
    figure = drawn(plot_barriers, CURVES, "", "title", "aligned + norms + gram", 0.9)
    for panel in figure.axes:
        found = lines(panel)
        assert list(found) == list(CURVES)
        colours = {name: line.get_color() for name, line in found.items()}
        assert len({colours[name] for name in ("naive", "random", "units", "aligned")}) == 4
        assert colours["aligned"] == colours["aligned + norms"] == colours["aligned + norms + gram"]
        dashes = {name: line._unscaled_dash_pattern for name, line in found.items()}
        assert dashes["naive + norms"] == dashes["aligned + norms"] != dashes["aligned"] == dashes["naive"]
        widths = {name: line.get_linewidth() for name, line in found.items()}
        assert max(widths, key=widths.__getitem__) == "aligned + norms + gram"
        assert found["random"].get_alpha() < found["aligned"].get_alpha()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["no repair", "norms", "norms + gram"]


def test_lines_are_named_where_they_are(drawn):
    """The variants, the chosen path in bold, and the ensemble's level; no two labels meet."""
    panel = drawn(plot_barriers, CURVES, "", "", "aligned + norms + gram", 0.9).axes[0]
    found = labels(panel)
    named = ["naive", "random", "units", "aligned", "aligned + norms + gram", "ensemble of the endpoints"]
    assert sorted(found) == sorted(named)
    assert found["aligned + norms + gram"].get_fontweight() == "bold"
    assert all(found[name].get_color() == line_style(name)["color"] for name in named[:5])
    heights = sorted(text.get_position()[1] for text in found.values())
    assert min(b - a for a, b in pairwise(heights)) >= LABEL_DISTANCE - 1e-9
    assert 0 < heights[0] < heights[-1] <= 1
    low, high = panel.get_ylim()
    level = (0.9 - low) / (high - low)
    assert heights[0] == found["ensemble of the endpoints"].get_position()[1] < level < heights[1]
    assert min(abs(height - level) for height in heights) > LABEL_DISTANCE / 2  # no label lies on the level's line
    assert [line.get_ydata()[0] for line in panel.lines if line.get_label().startswith("_")] == [0.9]


def test_controls_do_not_stretch_the_axes(drawn):
    panel = drawn(plot_barriers, CURVES, "").axes[0]
    assert 2.2 < panel.get_ylim()[1] < 3


def test_points_that_failed_leave_the_rest(drawn):
    failed = Barrier(T, (1.0, 1.2, math.nan, 1.2, 1.0), (0.9, 0.8, 0.1, 0.8, 0.9))
    panel = drawn(plot_barriers, {"naive": [failed], "aligned": [path(0.1)]}, "").axes[0]
    assert panel.get_ylim()[1] < 2
    assert set(labels(panel)) == {"naive", "aligned"}


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_file_is_written(suffix, tmp_path):
    plot_barriers({"naive": [path(1.0)]}, tmp_path / f"plot.{suffix}", "title")
    start = {"png": b"\x89PNG", "svg": b"<?xml"}[suffix]
    assert (tmp_path / f"plot.{suffix}").read_bytes().startswith(start)


def routing(layers: list[str], t=T) -> Routing:
    table = tuple(tuple(i / 10 + x / 2 for x in t) for i in range(len(layers)))
    return Routing(t, tuple(layers), table, table, table, table, table)


def test_cells_lie_around_their_ticks(drawn):
    """Also where points are not equally spaced."""
    t = (0.0, 0.4, 0.5, 1.0)
    found = {"naive": routing(["model.layers.0.mlp", "model.layers.7.mlp"], t)}
    panel = drawn(plot_routing, found, "").axes[0]
    (mesh,) = panel.collections
    corners = mesh.get_coordinates()
    assert corners[0, :, 0].tolist() == pytest.approx([-0.2, 0.2, 0.45, 0.75, 1.25])
    assert corners[:, 0, 1].tolist() == pytest.approx([-0.5, 0.5, 1.5])
    assert mesh.get_array().tolist() == [list(row) for row in found["naive"].load_entropy]
    assert panel.get_yticks().tolist() == [0, 1]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["0", "7"]
    assert panel.get_ylim() == (1.5, -0.5)  # the first layer on top


def test_of_many_layers_some_are_named(drawn):
    figure = drawn(plot_routing, {"aligned": routing([f"model.layers.{i}.mlp" for i in range(48)])}, "")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [str(i) for i in range(0, 48, 3)]


def test_layers_of_different_kinds_keep_their_names(drawn):
    names = ["encoder.block.1.layer.1.mlp", "decoder.block.3.mlp"]
    figure = drawn(plot_routing, {"naive": routing(names)}, "")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names
