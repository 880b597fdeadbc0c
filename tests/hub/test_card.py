import json
import os
import shutil
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import ModelCard
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from hf_moe_lmc import Alignment, MoeAligner, Verification, cli, merge, scramble
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.hub import write_card
from hf_moe_lmc.hub.card import SECTIONS
from hf_moe_lmc.hub.metadata import usage_of
from hf_moe_lmc.verification import LayerVerification, OutputDifference, verify
from tests.connectivity import siblings
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
        assert row.endswith(f"| {layer.evidence.label} |")
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


@pytest.mark.parametrize("place", ["/dev/zero", None])
def test_a_parents_card_that_is_no_plain_file(place, folder):
    card = folder / "a" / "README.md"
    card.unlink()
    card.symlink_to(place) if place else os.mkfifo(card)
    assert write_card(folder / "merged").data.license is None


LONG = "tags:\n" + "- [{}, {a: b}, c]\n" * 50_000


@pytest.mark.parametrize("before", [True, False])
def test_a_parents_card_of_many_words(before, folder):
    """What is looked for in it is found all the same, and nothing else is read."""
    for parent in ("a", "b"):
        parts = ["license: mit\nlanguage:\n- en\n- zh\n", LONG]
        content = "".join(parts if before else reversed(parts))
        (folder / parent / "README.md").write_text(f"---\n{content}---\n")
        assert len(content) > 800_000
    data = write_card(folder / "merged").data
    assert (data.license, data.language) == ("mit", ["en", "zh"])


BOMB = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))


@pytest.mark.parametrize(
    "content",
    [f"license: mit\n{BOMB}", f"license: {'[' * 10**5}", "license: *a\n", "license: mit\nlanguage: " + "x" * 10**5],
)
def test_a_parents_card_that_grows(content, folder):
    (folder / "a" / "README.md").write_text(f"---\n{content}\n---\n")
    assert write_card(folder / "merged").data.license in (None, "apache-2.0")


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
    a, b = siblings.pair("mixtral")
    scrambled, _ = scramble(deepcopy(b), seed=3)
    report = MoeAligner.from_pretrained(a, scrambled).evaluate(
        None, siblings.loader(0, 12), 3, variants=("aligned",), accelerator=Accelerator(cpu=True)
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
    assert "No weight was rounded" not in card.text
    assert "merge" not in card.data.tags
    assert card.data.get("base_model_relation") is None


def test_a_difference_in_fp8(folder):
    changed = {"shares": [-0.5, 1.5], "quantise": "fp8", "alignments": [None]}
    edit_record(folder / "merged", lambda record: record | changed)
    text = write_card(folder / "merged").text
    assert "--expert-order none --extrapolate --t 1.5 --quantise fp8 -o merged\n" in text
    assert "Linears and experts are stored as fp8" in text


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
    command = f"merge made/a made/b x/b --expert-order {order} --shares 0.5 0.25 0.25 --repair norms gram -o merged"
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


def code_of(card: ModelCard, language: str) -> str:
    """The first block of code in a language."""
    return card.text.partition(f"```{language}\n")[2].partition("```")[0]


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }}{% endfor %}"])
def test_use_is_code_that_runs(template, folder, monkeypatch, capsys):
    words = Tokenizer(WordLevel({"[UNK]": 0, "experts": 1, "mixture": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", chat_template=template)
    tokenizer.save_pretrained(folder / "merged")
    card = write_card(folder / "merged")
    monkeypatch.chdir(folder)
    # Experts of seven units are too small for the default implementation.
    code = code_of(card, "python").replace('dtype="auto"', 'experts_implementation="eager"')
    exec(code, names := {})
    assert type(names["model"]).__name__ == "MixtralForCausalLM"
    assert names["outputs"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert capsys.readouterr().out
    assert ("apply_chat_template" in card.text) == bool(template)


def test_use_of_an_alignment(folder, monkeypatch):
    command = code_of(write_card(folder / "alignment"), "sh").splitlines()[-1]
    assert command == "hf-moe-lmc apply alignment b -o aligned"
    monkeypatch.chdir(folder)
    assert cli.main(command.split()[1:]) == 0


@pytest.mark.parametrize(
    ("architecture", "files", "imports"),
    [
        ("MixtralForCausalLM", ["tokenizer_config.json"], "AutoModelForCausalLM, AutoTokenizer"),
        (
            "SwinForImageClassification",
            ["preprocessor_config.json"],
            "AutoImageProcessor, AutoModelForImageClassification",
        ),
        (
            "Qwen3VLMoeForConditionalGeneration",
            ["tokenizer_config.json", "processor_config.json"],
            "AutoProcessor, Qwen3VLMoeForConditionalGeneration",
        ),
        ("MixtralForCausalLM", [], "AutoModelForCausalLM"),
        ('x"; import os', [], "AutoModel"),
        (3, [], "AutoModel"),
    ],
)
def test_classes_that_load(architecture, files, imports, tmp_path):
    for name in files:
        (tmp_path / name).write_text("{}")
    assert usage_of(tmp_path, {"architectures": [architecture]}).imports == imports


@pytest.mark.parametrize("architectures", [5, None, "MixtralForCausalLM", {"a": 1}])
def test_architectures_that_are_none(architectures, folder):
    config = folder / "merged" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": architectures}))
    card = write_card(folder / "merged")
    assert "from transformers import AutoModel\n" in card.text
    assert card.data.get("pipeline_tag") is None


def test_own_architectures_are_imported(folder):
    config = folder / "merged" / "config.json"
    config.write_text(json.dumps({"architectures": ["MoeGPT2LMHeadModel"], "model_type": "moe_gpt2"}))
    card = write_card(folder / "merged")
    assert code_of(card, "python").startswith("import hf_moe_lmc.modeling")
    assert "pip install .  # in a clone of hf_moe_lmc" in code_of(card, "sh")


def test_install_line_and_link(folder, monkeypatch):
    alignment = Alignment.from_pretrained(folder / "alignment")
    text = write_card(folder / "merged", alignment).text
    assert "```sh\npip install .  # in a clone of hf_moe_lmc\nhf-moe-lmc align a b" in text
    (folder / "merged" / "README.md").unlink()
    monkeypatch.setattr("hf_moe_lmc.hub.card._repository_url", lambda: "https://example.org/x")
    text = write_card(folder / "merged", alignment).text
    assert "```sh\npip install git+https://example.org/x\nhf-moe-lmc align a b" in text
    assert "([hf_moe_lmc](https://example.org/x))" in text


def test_an_orchestrated_merge_is_called_by_its_name(folder):
    """Its card is written in another folder, and before it is complete."""
    merge(folder / "a", folder / "b", alignment="none", t=[0.25, 0.5], output=folder / "several")
    card = ModelCard.load(folder / "several" / "t-0.25" / "README.md")
    assert 'AutoModelForCausalLM.from_pretrained("t-0.25",' in card.text
    assert "hf-moe-lmc merge a b --expert-order none --t 0.25 -o merged\n" in card.text


def rows(text: str, head: str) -> list[str]:
    """The rows of the table that begins so."""
    table = text.partition(f"\n| {head} |")[2].partition("\n\n")[0]
    return table.splitlines()[2:]


def test_tables_have_eight_rows(folder):
    alignment = Alignment.from_pretrained(folder / "alignment")
    layer = next(iter(alignment.layers.values()))
    many = replace(alignment, layers={f"layers.{number}": deepcopy(layer) for number in range(22)})
    many.save_pretrained(folder / "alignment")
    differences = {f"layers.{number}": 1e-8 * (number * 7 % 22) for number in range(22)}
    layers = tuple(LayerVerification(name, x, 0.0, None, None, 5) for name, x in differences.items())
    proof = Verification({"random": OutputDifference(0.0, 0.0)}, layers, (), 1e-3)
    text = write_card(folder / "alignment", verification=proof).text
    shown = [row.split(" | ")[0].removeprefix("| ") for row in rows(text, "layer")]
    assert shown == [f"layers.{3 * number}" for number in range(8)]
    assert "8 of 22 layers, evenly spaced." in text
    worst = sorted(differences, key=differences.__getitem__)[-7:]
    shown = [row.split(" | ")[0].removeprefix("| ") for row in rows(text, "relative difference")]
    assert shown[0] == "outputs, random inputs"
    assert set(shown[1:]) == set(worst)


def path(t: list[float], loss: list[float]) -> dict:
    interval = {"loss_barrier": [0.0, 0.2]}
    return {"t": t, "loss": loss, "accuracy": loss, "loss_barrier": 0.1, "accuracy_barrier": 0.1, "intervals": interval}


def test_the_paths_that_matter_are_shown(folder):
    names = ["naive", *(f"control {number}" for number in range(9)), "aligned", "aligned + norms"]
    paths = {name: path([0, 0.5, 1], [1.0, 2.0 + place, 3.0]) for place, name in enumerate(names)}
    report = {"examples": 3, "predictions": 9, "dtype": "float32", "paths": paths, "routing": {}}
    (folder / "report").mkdir()
    (folder / "report" / "report.json").write_text(json.dumps(report))
    edit_record(folder / "merged", lambda record: record | {"repairs": ["norms"]})
    text = write_card(folder / "merged", report=folder / "report").text
    shown = [row.split(" | ")[0].removeprefix("| ") for row in rows(text, "path")]
    assert len(shown) == 8
    assert {"naive", "aligned", "aligned + norms"} < set(shown)
    assert "8 of 12 paths; all are in `report/report.md`." in text
    assert (
        "Loss of this merge: 13.0000; of the plain average, without alignment or repairs: 2.0000; "
        "of the two models: 1.0000 and 3.0000\n" in text
    )


@pytest.fixture
def complete(folder):
    """A merge whose card shows everything, and the arguments that made it."""
    (folder / "report").mkdir()
    report = {"examples": 3, "predictions": 9, "dtype": "float32", "routing": {}}
    paths = {"naive": path([0, 0.5, 1], [1.0, 2.0, 1.0]), "aligned": path([0, 0.5, 1], [1.0, 1.5, 1.0])}
    (folder / "report" / "report.json").write_text(json.dumps(report | {"paths": paths}))
    given = {
        "alignment": Alignment.from_pretrained(folder / "alignment"),
        "report": folder / "report",
        "verification": Verification({"random": OutputDifference(0.0, 0.0)}, (), (), 1e-3),
        "dataset": "org/data",
        "license": "gpl-3.0",
    }
    write_card(folder / "merged", **given)
    return folder / "merged", given


def test_a_card_that_is_written_again_loses_nothing(complete, capsys):
    merged, given = complete
    card = merged / "README.md"
    before = card.read_text()
    assert tuple(line[3:] for line in before.splitlines() if line.startswith("## ")) == SECTIONS
    write_card(merged)
    assert card.read_text() == before
    assert cli.main(["card", str(merged)]) == 0
    assert card.read_text() == before
    for name in given:
        write_card(merged, **{name: given[name]})
        assert ModelCard.load(card).data.license == "gpl-3.0"
        assert "org/data" in card.read_text() or name == "report"  # which may be one of other data


def test_a_card_in_steps_is_that_in_one(complete):
    merged, given = complete
    at_once = (merged / "README.md").read_text()
    (merged / "README.md").unlink()
    shutil.rmtree(merged / "report")
    for names in (["alignment"], ["verification"], ["report", "dataset"], ["license"]):
        write_card(merged, **{name: given[name] for name in names})
    in_steps = (merged / "README.md").read_text()
    assert sorted(in_steps.partition("\n---\n")[0].splitlines()) == sorted(at_once.partition("\n---\n")[0].splitlines())
    assert in_steps.partition("\n---\n")[2] == at_once.partition("\n---\n")[2]


def test_the_text_of_people_stays(complete):
    merged, given = complete
    card = merged / "README.md"
    text = card.read_text().replace("license: gpl-3.0\n", "license: gpl-3.0\nthumbnail: x.png\n")
    text = text.replace("## Limits\n", "## Training\n\n```sh\n## no heading\n```\n\n## Limits\n\n- Mine.\n")
    card.write_text(text)
    write_card(merged, given["alignment"], license="mit")
    assert card.read_text() == text.replace("license: gpl-3.0\n", "license: mit\n")


def test_what_is_given_again_is_shown_anew(complete):
    merged, _ = complete
    before = (merged / "README.md").read_text()
    proof = Verification({"random": OutputDifference(1.0, 1.0)}, (), ("lm_head.weight",), 1e-3)
    after = write_card(merged, verification=proof).content
    assert "does **not compute" in after
    assert "does **not compute" not in before
    section = "## Function preserved\n"
    assert after.partition(section)[0] == before.partition(section)[0]
    assert after.partition("## How it was made")[2] == before.partition("## How it was made")[2]


def test_a_report_that_is_none_leaves_the_earlier_one(complete, folder):
    merged, _ = complete
    before = (merged / "report" / "report.json").read_bytes()
    (folder / "other").mkdir()
    (folder / "other" / "report.json").write_text('{"examples": 3}')
    with pytest.raises(BadInputError, match="is no report as evaluate writes it"):
        write_card(merged, report=folder / "other")
    assert (merged / "report" / "report.json").read_bytes() == before


def test_an_invented_license(folder):
    with pytest.raises(BadInputError, match="'bananas' is no license of the Hub"):
        write_card(folder / "merged", license="bananas")
    assert not (folder / "merged" / "README.md").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\xff",
        b"---\n[1, 2]\n---\n",
        b"---\na: [\n---\n",
        b"---\na: &a 1\nb: *a\n---\n",
        b"---\na: " + b"[" * 10**4 + b"\n---\n",
        b"---\n" + b"- b\n" * 10**4 + b"---\n",
        b"x" * 2**21,
    ],
)
def test_a_card_of_its_own_that_cannot_be_read(content, folder):
    file = folder / "merged" / "README.md"
    file.write_bytes(content)
    with pytest.raises(BadInputError, match=r"README\.md"):
        write_card(folder / "merged")
    assert file.read_bytes() == content


def test_the_command(folder):
    assert cli.main(["card", str(folder / "merged"), "--license", "mit"]) == 0
    assert ModelCard.load(folder / "merged" / "README.md").data.license == "mit"
