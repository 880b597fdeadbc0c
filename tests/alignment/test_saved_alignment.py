"""The saved alignment: round trips, other versions of the package, and everything that is not one."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_moe_lmc import Alignment, MoeAligner, align, apply, scramble
from hf_moe_lmc.alignment import open_model
from hf_moe_lmc.alignment.saved_alignment import FORMAT
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError
from tests.checkpoints.faulty import edit_json, failed, join, worked
from tests.models import MODELS, build

CONFIG, WEIGHTS = "alignment_config.json", "alignment.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Mixtral; itself scrambled; a fine-tune of that; the alignment of the first two."""
    folder = tmp_path_factory.mktemp("alignment")
    model = build("mixtral", dtype=torch.float32)
    model.save_pretrained(folder / "reference")
    scramble(model)[0].save_pretrained(folder / "other")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    model.save_pretrained(folder / "tuned")
    align(folder / "reference", folder / "other").save_pretrained(folder / "alignment")
    return folder


def test_a_full_disk_is_told_as_one(folders, tmp_path):
    (tmp_path / WEIGHTS).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        Alignment.from_pretrained(folders / "alignment").save_pretrained(tmp_path)


def tensors(folder):
    return load_file(folder / "model.safetensors")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_round_trip(folders, tmp_path):
    alignment = align(folders / "reference", folders / "other")
    alignment.save_pretrained(tmp_path)
    loaded = Alignment.from_pretrained(tmp_path)
    assert loaded == alignment
    assert loaded.digest == alignment.digest
    tables = [[layer.expert_table for layer in found.layers.values()] for found in (loaded, alignment)]
    assert all(table.shape == (5, 5) and torch.equal(table, own) for table, own in zip(*tables, strict=True))
    assert loaded.reference.name == str(folders / "reference")
    assert loaded.other.digests.keys() == alignment.layers.keys()
    versions = json.loads((tmp_path / CONFIG).read_text())["versions"]
    assert versions["torch"] == torch.__version__.partition("+")[0] or versions["torch"] == torch.__version__
    assert versions.keys() == {"hf_moe_lmc", "torch", "transformers"}


def test_laws_on_checkpoints(folders, tmp_path):
    alignment = Alignment.from_pretrained(folders / "alignment")
    apply(alignment, folders / "other", tmp_path / "aligned")
    assert same(tensors(tmp_path / "aligned"), tensors(folders / "reference"))
    apply(alignment.inverse(), tmp_path / "aligned", tmp_path / "back")
    assert same(tensors(tmp_path / "back"), tensors(folders / "other"))


@pytest.mark.parametrize("command", ["apply", "merge"])
def test_other_weights(folders, tmp_path, capsys, command):
    """A fine-tune needs permission, and is then rewritten as the original would be."""
    side = ["merge", folders / "reference", folders / "tuned", "--alignment", folders / "alignment", "--t", "1"]
    arguments = ["apply", folders / "alignment", folders / "tuned"] if command == "apply" else side
    found = failed(capsys, tmp_path / "out", *arguments)
    assert found.code == 4
    assert f"layer model.layers.0.mlp of {folders / 'tuned'} is not that of {folders / 'other'}" in found.line
    assert "--allow-other-weights" in found.line
    worked(capsys, tmp_path / "out", *arguments, "--allow-other-weights")
    assert same(
        tensors(tmp_path / "out"), {key: 1.25 * tensor for key, tensor in tensors(folders / "reference").items()}
    )


def test_merge_into_another_reference(folders, tmp_path, capsys):
    side = ["merge", folders / "tuned", folders / "other", "--alignment", folders / "alignment"]
    found = failed(capsys, tmp_path / "out", *side)
    assert found.code == 4
    assert f"layer model.layers.0.mlp of {folders / 'tuned'} is not that of {folders / 'reference'}" in found.line
    worked(capsys, tmp_path / "out", *side, "--allow-other-weights")


def test_another_model(folders, tmp_path, capsys):
    build("qwen2_moe", dtype=torch.float32).save_pretrained(tmp_path / "qwen")
    found = failed(capsys, tmp_path / "out", "apply", folders / "alignment", tmp_path / "qwen", "--allow-other-weights")
    assert found.code == 4
    assert "layer model.layers." in found.line


def test_fewer_layers(folders, tmp_path):
    alignment = Alignment.from_pretrained(folders / "alignment")
    half = replace(alignment, layers=dict([*alignment.layers.items()][:1]))
    with pytest.raises(IncompatiblePairError, match=r"layer model\.layers\.1\.mlp of .* is not part of the alignment"):
        apply(half, folders / "other", tmp_path / "out")


EXPERTS, UNITS = "model.layers.0.mlp.experts", "model.layers.1.mlp.units"
TABLE = "model.layers.0.mlp.expert_table"


def edit(key: str, change):
    def fault(folder):
        found = load_file(folder / WEIGHTS)
        save_file(found | {key: change(found.get(key))}, folder / WEIGHTS)

    return fault


def remove(key: str):
    def fault(folder):
        found = load_file(folder / WEIGHTS)
        del found[key]
        save_file(found, folder / WEIGHTS)

    return fault


def sparse(folder):
    file = folder / WEIGHTS
    header = {EXPERTS: {"dtype": "I64", "shape": [1_250_000_000], "data_offsets": [0, 10**10]}}
    join(file, json.dumps(header).encode(), b"")
    os.truncate(file, file.stat().st_size + 10**10)


def edit_layer(**fields: object):
    return lambda folder: edit_json(folder / CONFIG, lambda c: c["layers"]["model.layers.0.mlp"].update(fields))


DAMAGES = {
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS),
    "no config": (lambda folder: (folder / CONFIG).unlink(), CONFIG),
    "not JSON": (lambda folder: (folder / CONFIG).write_text("{"), "is not valid JSON"),
    "a list": (lambda folder: (folder / CONFIG).write_text("[]"), "holds a JSON list"),
    "HTML": (lambda folder: (folder / WEIGHTS).write_text("<html>" * 10), "an HTML page"),
    "cut off": (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1]), "bytes"),
    "twice the same": (edit(EXPERTS, lambda index: index.clamp(max=3)), EXPERTS),
    "beyond": (edit(EXPERTS, lambda index: index + 1), EXPERTS),
    "negative": (edit(UNITS, lambda index: index - 1), UNITS),
    "not whole": (edit(EXPERTS, lambda index: index.float()), EXPERTS),
    "one number": (edit(EXPERTS, lambda index: index[0]), EXPERTS),
    "one axis more": (edit(EXPERTS, lambda index: index[None]), EXPERTS),
    "signs of another kind": (edit(f"{UNITS}.signs", lambda signs: signs.bool()), UNITS),
    "a table of another kind": (edit(TABLE, lambda table: table.bool()), TABLE),
    "fewer rows": (edit(UNITS, lambda index: index[1:]), UNITS),
    "signs of 2": (edit(f"{UNITS}.signs", lambda signs: 2 * signs), UNITS),
    "signs of another shape": (edit(f"{UNITS}.signs", lambda signs: signs[:, 1:].clone()), UNITS),
    "ten gigabytes, of which none are on the disk": (sparse, f"{EXPERTS} has the shape (1250000000,); no layer is"),
    "no signs": (remove(f"{UNITS}.signs"), f"{UNITS}.signs is missing"),
    "no experts": (remove(EXPERTS), f"{EXPERTS} is missing"),
    "a tensor too many": (edit("extra", lambda _: torch.ones(2)), "extra belongs to no layer"),
    "layer missing": (lambda f: edit_json(f / CONFIG, lambda c: c["layers"].popitem()), "belongs to no layer"),
    "no layers": (lambda f: edit_json(f / CONFIG, lambda c: c.pop("layers")), "layers is missing"),
    "layers of no names": (lambda f: edit_json(f / CONFIG, lambda c: c.update(layers=[1])), ""),
    "distance in words": (edit_layer(distance_after="near"), "distance_after is 'near'"),
    "distance that is no number": (edit_layer(distance_before=float("nan")), "are no distances"),
    "a setting with another value": (
        lambda f: edit_json(f / CONFIG, lambda c: c["config"].update(expert_order="gauss")),
        "gauss",
    ),
    "record of another kind": (lambda f: edit_json(f / CONFIG, lambda c: c.update(other={"name": 1})), ""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged(folders, tmp_path, damage):
    change, words = DAMAGES[damage]
    Alignment.from_pretrained(folders / "alignment").save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(BadInputError) as refusal:
        Alignment.from_pretrained(tmp_path)
    assert f"{tmp_path} does not hold an alignment: " in str(refusal.value)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def edited(folders, tmp_path, change) -> Alignment:
    """The alignment, saved, its figures edited, and loaded again."""
    alignment = Alignment.from_pretrained(folders / "alignment")
    alignment.save_pretrained(tmp_path)
    edit_json(tmp_path / CONFIG, change)
    loaded = Alignment.from_pretrained(tmp_path)
    assert loaded.symmetries == alignment.symmetries
    return loaded


def layers_of(content: dict) -> list[dict]:
    return [*content["layers"].values()]


def test_the_format_is_written(folders):
    assert json.loads((folders / "alignment" / CONFIG).read_text())["format"] == FORMAT == 2


@pytest.mark.parametrize("newer", [FORMAT + 1, 0, "3", None])
def test_another_format_is_refused_by_name(folders, tmp_path, newer):
    words = rf"its format is {newer!r}, this version reads up to {FORMAT}; install a newer hf_moe_lmc"
    with pytest.raises(BadInputError, match=words):
        edited(folders, tmp_path, lambda content: content.update(format=newer))


def test_an_alignment_of_version_0_1_loads(folders, tmp_path):
    """It has no format, a setting that is gone, and evidence without the experts."""
    expected = Alignment.from_pretrained(folders / "alignment")
    assert edited(folders, tmp_path / "plain", lambda content: content.pop("format")) == expected

    def old(content):
        del content["format"]
        content["config"]["balance_scales"] = False
        for figures in layers_of(content):
            del figures["evidence"]["experts"]
            figures["evidence"] |= {"reduction": 0.9, "fixed_experts": 0.0}

    loaded = edited(folders, tmp_path / "old", old)
    assert loaded.config == expected.config
    assert loaded.digest == expected.digest
    assert edited(folders, tmp_path / "sketch", lambda c: c["config"].update(expert_order="sketch")).config is None


def test_unknown_figures_are_left_out(folders, tmp_path):
    def more(content):
        for entries in (content, content["config"], content["reference"], content["other"], *layers_of(content)):
            entries["unknown"] = 1.5
        for figures in layers_of(content):
            figures["evidence"]["unknown"] = [1, 2]

    assert edited(folders, tmp_path, more) == Alignment.from_pretrained(folders / "alignment")


@pytest.mark.parametrize("missing", ["gap", "expert_method", "experts", "evidence"])
def test_missing_figures_are_done_without(folders, tmp_path, missing):
    """Evidence that lacks a figure proves nothing any more."""

    def less(content):
        for figures in layers_of(content):
            del (figures if missing == "evidence" else figures["evidence"])[missing]

    loaded = edited(folders, tmp_path, less)
    assert all(layer.evidence is None for layer in loaded.layers.values())
    assert loaded.verdict() is None
    assert str(loaded)
    assert len(loaded.layer_table()) == 2


def test_missing_settings_have_their_defaults(folders, tmp_path):
    loaded = edited(folders, tmp_path, lambda content: content["config"].pop("expert_order"))
    assert loaded.config == Alignment.from_pretrained(folders / "alignment").config


def test_an_alignment_of_an_older_version_is_applied(folders, tmp_path):
    def old(content):
        del content["format"]
        content["config"]["sketch"] = 8
        for figures in layers_of(content):
            del figures["evidence"]["gap"]

    loaded = edited(folders, tmp_path, old)
    apply(loaded, folders / "other", tmp_path / "aligned")
    assert same(tensors(tmp_path / "aligned"), tensors(folders / "reference"))
    MoeAligner.from_pretrained(folders / "reference", folders / "other").merge(loaded, output=tmp_path / "merged")
    assert same(tensors(tmp_path / "merged"), tensors(folders / "reference"))


@pytest.mark.parametrize("name", MODELS)
def test_every_model(name, tmp_path):
    alignment = align(build(name, seed=0), build(name, seed=1))
    alignment.save_pretrained(tmp_path / "alignment")
    assert Alignment.from_pretrained(tmp_path / "alignment") == alignment


def test_a_checkpoint_is_no_alignment(folders, tmp_path, capsys):
    found = failed(capsys, tmp_path / "out", "apply", folders / "other", folders / "other")
    assert found.code == 3
    assert "holds a model and no alignment; perhaps the two are swapped" in found.line
    assert open_model(folders / "other").layers
