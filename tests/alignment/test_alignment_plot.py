import pytest
import torch
from matplotlib.figure import Figure

from hf_moe_lmc import align, scramble
from hf_moe_lmc.alignment import plot_alignment
from hf_moe_lmc.cli import main
from hf_moe_lmc.errors import BadInputError
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
    bars, experts = drawn[0].axes[:2]
    heights = [[bar.get_height() for bar in group] for group in bars.containers]
    layers = alignment.layers.values()
    assert heights == [[x.distance_before for x in layers], [x.distance_after for x in layers]]
    random = [x.evidence.random_distance for x in layers]
    assert bars.collections[0].get_offsets()[:, 1].tolist() == pytest.approx(random)
    assert all(x.distance_after < floor for x, floor in zip(layers, random, strict=True))
    layer = alignment.layers[name]
    assert experts.get_title() == f"{name}, by gate"
    assert (experts.images[0].get_array() == layer.expert_table.numpy()).all()
    ringed = experts.collections[0].get_offsets()
    assert ringed[:, 0].tolist() == layer.symmetry.experts.index.tolist()
    assert ringed[:, 1].tolist() == list(range(5))


def test_without_evidence_there_are_bars_only(drawn, tmp_path):
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
