import json
import shutil
from copy import deepcopy

import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import ModelCard

from hf_moe_lmc import Alignment, MoeAligner, cli, scramble
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.hub import write_card
from hf_moe_lmc.matching import judge_layer
from hf_moe_lmc.verification import verify
from tests.connectivity import finetuned
from tests.hub.conftest import edit_record, written
from tests.hub.server import Repository
from tests.models import build

ALIGNMENT = "alignment_config.json"
EVIL = "| evil <script> {{x}} `a` \n---\nlicense: mit"


def test_metadata_and_layers_of_a_merge(folder):
    alignment = Alignment.from_pretrained(folder / "alignment")
    written = write_card(folder / "merged", alignment)
    card = ModelCard.load(folder / "merged" / "README.md")
    assert (
        card.data.to_dict()
        == written.data.to_dict()
        == {
            "base_model": ["org/base"],
            "base_model_relation": "merge",
            "datasets": ["org/corpus"],
            "language": ["en"],
            "library_name": "transformers",
            "license": "apache-2.0",
            "pipeline_tag": "text-generation",
            "tags": ["merge", "moe", "mixtral", "hf_moe_lmc", "linear-mode-connectivity"],
        }
    )
    for name, layer in alignment.layers.items():
        row = next(line for line in card.text.splitlines() if line.startswith(f"| {name} "))
        assert f"| {layer.distance_before:.4g} | {layer.distance_after:.4g} |" in row
        assert row.endswith(f"| {judge_layer(layer.evidence)} |")
    assert f"hf-moe-lmc align a b --expert-order {alignment.config.expert_order} -o alignment\n" in card.text
    assert "hf-moe-lmc merge a b --alignment alignment --t 0.5 -o merged\n" in card.text
    assert str(folder) not in card.content


def test_share_of_what_moved(folder):
    """Of a mere rotation of the experts: all of them, and no unit inside them."""
    alignment = Alignment.from_pretrained(folder / "alignment")
    name, layer = next(iter(alignment.layers.items()))
    experts, units = layer.symmetry.experts.index, layer.symmetry.units.permutation.index
    moved = (experts != torch.arange(5)).double().mean()
    units_moved = (units != torch.arange(7)).double().mean()
    assert min(moved, units_moved) > 0
    card = write_card(folder / "alignment")
    assert f"| {100 * moved:.0f} % | {100 * units_moved:.0f} % |" in card.text.split(f"| {name} ")[1].splitlines()[0]


def test_a_hostile_parent_breaks_nothing(folder):
    evil = {"name": EVIL, "commit": None}
    edit_record(folder / "merged", lambda record: record | {"models": [evil, record["models"][1]]})
    edit_record(folder / "alignment", lambda record: record | {"reference": record["reference"] | evil}, ALIGNMENT)
    hostile = (
        f"---\nlicense: {json.dumps(EVIL)}\npipeline_tag: {{a: [b]}}\nlanguage: {json.dumps([EVIL, 3, None])}\n---\n"
    )
    (folder / "b" / "README.md").write_text(hostile)
    for name in ("merged", "alignment"):
        card = write_card(folder / name, license="mit")
        again = ModelCard((folder / name / "README.md").read_text())
        assert again.data.to_dict() == card.data.to_dict()
        assert again.data.license == "mit"
        assert all("\n" not in word for word in again.data.language)
        prose = again.text.replace("```", "")
        assert "<script>" not in prose.split("## How it was made")[0]
        cells = [line.replace(r"\|", "").count("|") for line in prose.splitlines() if line.startswith("| ")]
        assert set(cells[:4]) == {cells[0]}
        assert "{{" not in prose.replace(r"\{\{", "").split("## How it was made")[0]


@pytest.mark.parametrize(
    "content", ["no metadata", "---\n[1, 2]\n---\n", "---\na: [\n---\n", "---\nlicense: 3\n---\n", b"\xff"]
)
def test_parents_without_a_usable_card(folder, content):
    for parent in ("a", "b"):
        (folder / parent / "README.md").write_bytes(content if isinstance(content, bytes) else content.encode())
    data = write_card(folder / "merged").data.to_dict()
    assert not {"license", "base_model", "base_model_relation", "language"} & data.keys()
    assert data["tags"][0] == "merge"


def test_parents_on_the_hub_are_named_with_their_commits(folder, hub):
    hub.repositories["org/a"] = Repository(commits=[{"README.md": b"---\nlicense: mit\n---\n"}])
    commit = hub.repositories["org/a"].sha
    on_hub = {"name": "org/a@main", "commit": commit}
    edit_record(folder / "merged", lambda record: record | {"models": [on_hub, record["models"][1]]})
    card = write_card(folder / "merged", Alignment.from_pretrained(folder / "alignment"))
    assert card.data.base_model == ["org/a", "org/base"]
    assert f"hf-moe-lmc merge org/a@{commit} b " in card.text
    assert card.data.license == "apache-2.0"  # takes in the MIT license of org/a


def test_a_parent_that_the_hub_does_not_have(folder, hub):
    gone = {"name": "org/a", "commit": "d" * 40}
    edit_record(folder / "merged", lambda record: record | {"models": [gone, record["models"][1]]})
    assert write_card(folder / "merged").data.license is None


def test_report_and_verification(folder):
    a, b = finetuned.pair("mixtral")
    scrambled, _ = scramble(deepcopy(b), seed=3)
    report = MoeAligner.from_pretrained(a, scrambled).evaluate(
        None, finetuned.loader(0, 12), 3, variants=("aligned",), accelerator=Accelerator(cpu=True)
    )
    model = build("mixtral", dtype=torch.float32)
    proof = verify(model, scramble(deepcopy(model))[0])
    card = write_card(folder / "merged", report=report, verification=proof, dataset="org/data")
    assert card.text.count("](report/curves.png)") == 1
    assert (folder / "merged" / "report" / "curves.png").stat().st_size > 1000
    assert "computes **what the other model computed**" in card.text
    aligned = report.curves["aligned"]
    middle = aligned.barrier.loss[1]
    assert f"| naive | {report.curves['naive'].barrier.loss_barrier:.4f} |" in card.text
    assert f"{middle:.4f}" in card.text
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"loss": middle, "accuracy": aligned.barrier.accuracy[1]}
    assert ModelCard(str(card)).data.to_dict()["model-index"][0]["name"] == "merged"
    # The report stays for the next card, and may come from its own folder.
    shutil.move(folder / "merged" / "report", folder / "report")
    assert str(write_card(folder / "merged", None, folder / "report", proof, "org/data")) == str(card)
    assert "report/curves.png" in write_card(folder / "merged").text


def test_a_spoilt_verification_is_said(folder):
    model = build("mixtral", dtype=torch.float32)
    spoilt = deepcopy(model)
    with torch.no_grad():
        next(p for name, p in spoilt.named_parameters() if name.endswith("down_proj")).mul_(2)
        spoilt.lm_head.weight.mul_(2)
    text = write_card(folder / "merged", verification=verify(model, spoilt)).text
    assert "does **not compute what the other model computed**" in text
    assert r"changed: lm\_head.weight." in text


def test_a_rewritten_checkpoint(folder):
    alignment = Alignment.from_pretrained(folder / "alignment")
    written("apply", [folder / "b"], folder / "aligned", alignment, layout="fused", dtype=torch.bfloat16)
    card = write_card(folder / "aligned", alignment)
    assert "The same function as b." in card.text
    assert "hf-moe-lmc apply alignment b --layout fused --dtype bfloat16 -o aligned\n" in card.text
    assert "merge" not in card.data.tags
    assert card.data.get("base_model_relation") is None


def test_several_models(folder):
    """Two aligned, one of them by nothing."""
    alignment = Alignment.from_pretrained(folder / "alignment")
    changed = {
        "models": [{"name": str(folder / name), "commit": None} for name in ("a", "b", "x/b")],
        "shares": [0.5, 0.25, 0.25],
        "alignments": [alignment.digest] * 2,
        "repairs": ["norms", "gram"],
    }
    edit_record(folder / "merged", lambda record: record | changed)
    card = write_card(folder / "merged", [alignment, alignment])
    assert "# made/a, made/b and x/b, aligned and merged\n" in card.text
    assert "| other 2 | x/b | local folder | not stated | 0.25 |\n" in card.text
    assert card.text.count("| model.layers.0.mlp |") == 2
    order = alignment.config.expert_order
    command = f"merge made/a made/b x/b --shares 0.5 0.25 0.25 --expert-order {order} --repair norms gram -o merged"
    assert f"hf-moe-lmc {command}\n" in card.text
    with pytest.raises(BadInputError, match="was not made with this alignment"):
        write_card(folder / "merged", alignment)
    edit_record(folder / "merged", lambda record: record | {"alignments": [None, alignment.digest]})
    assert write_card(folder / "merged", [None, alignment]).text.count("| model.layers.0.mlp |") == 1


def test_a_mean_of_models_that_were_not_aligned(folder):
    edit_record(folder / "merged", lambda record: record | {"alignments": [None]})
    text = write_card(folder / "merged").text
    assert "# a and b, averaged\n" in text
    assert "reordered" not in text


@pytest.mark.parametrize(("t", "whose"), [(0.3, "the reference"), (1, "the other")])
def test_settings_are_those_of_the_nearer_endpoint(t, whose, folder):
    edit_record(folder / "merged", lambda record: record | {"shares": [1 - t, t]})
    text = write_card(folder / "merged").text
    assert f"with t = {t:g}." in text
    assert f"Configuration and tokenizer are those of {whose}." in text


@pytest.mark.parametrize(
    ("calibration", "flags"),
    [
        (None, "--repair moments router -o"),
        ({"data": "1"}, "--repair moments router --dataset DATA -o"),
        (
            {"data": "1", "source": {"dataset": "a b.txt", "length": 64}},
            "--repair moments router --dataset 'a b.txt' --length 64 -o",
        ),
    ],
)
def test_repairs_by_name(calibration, flags, folder):
    changed = {"repairs": ["moments", "router"]} | ({"calibration": calibration} if calibration else {})
    edit_record(folder / "merged", lambda record: record | changed)
    text = write_card(folder / "merged", Alignment.from_pretrained(folder / "alignment")).text
    assert f"hf-moe-lmc merge a b --alignment alignment --t 0.5 {flags} merged\n" in text
    assert "one after the other: moments, router." in text


def test_refusals(folder):
    with pytest.raises(BadInputError, match="give a folder that merge, apply or align wrote"):
        write_card(folder / "a")
    other = Alignment.from_pretrained(folder / "alignment").inverse()
    with pytest.raises(BadInputError, match="was not made with this alignment"):
        write_card(folder / "merged", other)
    with pytest.raises(BadInputError, match=r"report\.json"):
        write_card(folder / "merged", report=folder / "a")
    (folder / "merged" / "report").mkdir()
    (folder / "merged" / "report" / "report.json").write_text('{"examples": []}')
    with pytest.raises(BadInputError, match="is no report as evaluate writes it"):
        write_card(folder / "merged")
    assert not (folder / "merged" / "README.md").exists()


def test_the_command(folder):
    assert cli.main(["card", str(folder / "merged"), "--license", "mit"]) == 0
    assert ModelCard.load(folder / "merged" / "README.md").data.license == "mit"
