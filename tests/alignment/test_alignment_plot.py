from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure

from hf_moe_lmc import Alignment, align, scramble
from hf_moe_lmc.alignment import plot_alignment
from hf_moe_lmc.cli import main
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.matching import LayerAlignment
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation
from tests.models import build
from tests.tiny_pair import save_pair


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """All figures that are saved, after saving."""
    figures, save = [], Figure.savefig

    def saved(figure: Figure, *arguments: object, **keywords: object) -> None:
        save(figure, *arguments, **keywords)
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", saved)
    return figures


def test_it_shows_the_figures_of_the_alignment(drawn, tmp_path):
    model = build("mixtral", dtype=torch.float32)
    alignment = align(model, scramble(build("mixtral", seed=1, dtype=torch.float32))[0], config="gate")
    name = list(alignment.layers)[1]
    plot_alignment(alignment, tmp_path / "picture.png", name)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    distances, experts = drawn[0].axes[:2]
    layers = alignment.layers.values()
    lines = {line.get_label(): list(line.get_ydata()) for line in distances.lines}
    assert lines["before alignment"] == [x.distance_before for x in layers]
    assert lines["after alignment"] == [x.distance_after for x in layers]
    assert lines["units in a random order"] == (random := [x.evidence.random_distance for x in layers])
    assert all(x.distance_after < floor for x, floor in zip(layers, random, strict=True))
    layer = alignment.layers[name]
    assert experts.get_title() == f"{name}\nexpert order gate"
    order = layer.symmetry.experts.index.tolist()
    assert order != sorted(order)
    shown, table = experts.images[0].get_array(), layer.expert_table
    assert all(shown[i, i] == table[i, order[i]] for i in range(5))  # partners are on the diagonal
    assert [label.get_text() for label in experts.get_xticklabels()] == [str(i) for i in order]


def test_a_large_model_fits_a_page(drawn, tmp_path):
    """The size does not depend on that of the model, and ticks name cells that are there."""
    order = Permutation(torch.arange(128).roll(1))
    symmetry = replace(MoeSymmetry.identity(128, 1), experts=order)
    layer = LayerAlignment(symmetry, 2.0, 1.0, None, torch.eye(128)[:, order.inverse().index])
    layers = {f"model.layers.{number}.mlp": layer for number in range(48)}
    plot_alignment(Alignment(layers), tmp_path / "picture.png")
    assert (drawn[0].get_size_inches() <= 10).all()
    distances, experts = drawn[0].axes[:2]
    assert [label.get_text() for label in distances.get_xticklabels()] == [str(i) for i in range(0, 48, 3)]
    assert [label.get_text() for label in experts.get_xticklabels()][:2] == ["127", "7"]
    assert (experts.images[0].get_array().diagonal() == 1).all()


def test_without_evidence_there_are_distances_only(drawn, tmp_path):
    alignment = scramble(build("mixtral", dtype=torch.float32))[1]
    plot_alignment(alignment, tmp_path / "picture.svg")
    assert len(drawn[0].axes) == 1
    with pytest.raises(BadInputError, match=r"no experts were compared in model\.x; choose one of: none"):
        plot_alignment(alignment, tmp_path / "picture.svg", "model.x")


def test_the_command_draws_it(tmp_path, capsys):
    save_pair(tmp_path)
    arguments = [str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "out")]
    assert main(["align", *arguments, "--plot", str(tmp_path / "picture.png")]) == 0
    assert (tmp_path / "picture.png").exists()
    assert "verdict: 1 of 1 layers: aligned. " in capsys.readouterr().out
