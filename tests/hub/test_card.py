import json
import shutil
from copy import deepcopy

import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import ModelCard

from hf_moe_lmc import cli, scramble
from hf_moe_lmc.alignment import Alignment, OutputOptions, apply, merge_checkpoints
from hf_moe_lmc.connectivity import evaluate_path
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.hub import write_card
from hf_moe_lmc.matching import judge_layer
from hf_moe_lmc.verification import verify
from tests.connectivity import finetuned
from tests.hub.conftest import MARKERS
from tests.hub.server import Repository
from tests.models import build

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
    for name, file in MARKERS.items():
        marker = folder / name / file
        record = json.loads(marker.read_text())
        record["reference"] = record["reference"] | {"name": EVIL, "commit": None}
        marker.write_text(json.dumps(record))
    hostile = (
        f"---\nlicense: {json.dumps(EVIL)}\npipeline_tag: {{a: [b]}}\nlanguage: {json.dumps([EVIL, 3, None])}\n---\n"
    )
    (folder / "b" / "README.md").write_text(hostile)
    for name in ("merged", "alignment"):
        card = write_card(folder / name, licence="mit")
        again = ModelCard((folder / name / "README.md").read_text())
        assert again.data.to_dict() == card.data.to_dict()
        assert again.data.license == "mit"
        assert all("\n" not in word for word in again.data.language)
        prose = again.text.replace("```", "")
        assert "<script>" not in prose.split("## How it was made")[0]
        rows = [line for line in prose.splitlines() if line.startswith("| reference")]
        assert [row.replace(r"\|", "").count("|") for row in rows] == [5]
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
    manifest = folder / "merged" / "hf_moe_lmc_manifest.json"
    record = json.loads(manifest.read_text())
    record["reference"] = {"name": "org/a@main", "commit": commit}
    manifest.write_text(json.dumps(record))
    card = write_card(folder / "merged", Alignment.from_pretrained(folder / "alignment"))
    assert card.data.base_model == ["org/a", "org/base"]
    assert f"hf-moe-lmc merge org/a@{commit} b " in card.text
    assert card.data.license == "apache-2.0"  # takes in the MIT licence of org/a
    del hub.repositories["org/a"]
    record["reference"]["commit"] = "d" * 40  # not in the cache
    manifest.write_text(json.dumps(record))
    assert write_card(folder / "merged").data.license is None


def test_report_and_verification(folder):
    a, b = finetuned.pair("mixtral")
    scrambled, _ = scramble(deepcopy(b), seed=3)
    report = evaluate_path(
        a,
        scrambled,
        None,
        finetuned.loader(0, 12),
        3,
        accelerator=Accelerator(cpu=True),
        arrangements=("aligned",),
        resamples=50,
    )
    model = build("mixtral", dtype=torch.float32)
    proof = verify(model, scramble(deepcopy(model))[0])
    card = write_card(folder / "merged", report=report, verification=proof, dataset="org/data")
    assert card.text.count("](report/curves.png)") == 1
    assert (folder / "merged" / "report" / "curves.png").stat().st_size > 1000
    assert "**equal up to rounding**" in card.text
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
    assert "**NOT equal**" in text
    assert r"but these: lm\_head.weight" in text


def test_a_rewritten_checkpoint(folder):
    alignment = Alignment.from_pretrained(folder / "alignment")
    apply(alignment, folder / "b", folder / "aligned", OutputOptions("fused", torch.bfloat16))
    card = write_card(folder / "aligned", alignment)
    assert "Computes what b computes" in card.text
    assert "hf-moe-lmc apply alignment b --layout fused --dtype bfloat16 -o aligned\n" in card.text
    assert "merge" not in card.data.tags
    assert card.data.get("base_model_relation") is None


def test_what_is_refused(folder):
    merge_checkpoints(folder / "a", folder / "b", folder / "several", t=[0.25, 0.5])
    with pytest.raises(BadInputError, match=r"holds several outputs; give one of its folders: t-0\.25, t-0\.5"):
        write_card(folder / "several")
    write_card(folder / "several" / "t-0.25")
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
    (folder / "merged" / "hf_moe_lmc_manifest.json").write_text('{"command": "merge"}')
    with pytest.raises(BadInputError, match="its record is not as this package writes it"):
        write_card(folder / "merged")
    assert not (folder / "merged" / "README.md").exists()


def test_commands_write_cards(folder, capsys):
    pair = [str(folder / "a"), str(folder / "b")]
    alignment = str(folder / "alignment")
    out = str(folder / "several")
    assert cli.main(["merge", *pair, "--alignment", alignment, "--t", "0.25", "0.5", "-o", out]) == 0
    assert "| model.layers.0.mlp |" in (folder / "several" / "t-0.25" / "README.md").read_text()
    assert "t = 0.5" in (folder / "several" / "t-0.5" / "README.md").read_text()
    assert cli.main(["apply", alignment, pair[1], "-o", str(folder / "aligned")]) == 0
    assert "Computes what b computes" in (folder / "aligned" / "README.md").read_text()
    assert cli.main(["card", str(folder / "aligned"), "--license", "mit"]) == 0
    assert ModelCard.load(folder / "aligned" / "README.md").data.license == "mit"
