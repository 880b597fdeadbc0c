"""Checkpoints written from folder to folder."""

import json
import re
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralForCausalLM

from hf_moe_lmc import MoeAligner, align, cli, merge, scramble
from hf_moe_lmc.alignment import Merge, MergeRepairs, WriteOptions, open_models, shares_at
from hf_moe_lmc.errors import BadInputError
from tests import families, models

NAMES = ["mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "moe_vit shared", "moe_gpt2 sparse"]
SHARD = 5_000
POINTS = (0.0, 0.3, 1.0)


def build(name: str, seed: int, dtype=torch.float32):
    return (models if name in models.MODELS else families).build(name, seed=seed, dtype=dtype)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [key for key in a if a[key].dtype != b[key].dtype or not torch.equal(a[key], b[key])] == []


@pytest.fixture
def pair(tmp_path):
    """Mixtral in float32: a, and b, a scrambled copy with noise."""
    model = build("mixtral", 0)
    model.save_pretrained(tmp_path / "a", max_shard_size=SHARD)
    scramble(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.01)
    model.save_pretrained(tmp_path / "b", max_shard_size=SHARD)
    return tmp_path


def command(pair: Path, *more: str) -> list[str]:
    return ["merge", str(pair / "a"), str(pair / "b"), "-o", str(pair / "out"), *more]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_folders_as_live_models(name, dtype, tmp_path):
    a, b = (build(name, seed, dtype) for seed in (0, 1))
    a.save_pretrained(tmp_path / "a", max_shard_size=SHARD)
    b.save_pretrained(tmp_path / "b", max_shard_size=SHARD)
    alignment = align(a, b)
    assert merge(tmp_path / "a", tmp_path / "b", t=POINTS, output=tmp_path / "out", force=True) == tmp_path / "out"
    for t in POINTS:
        merge(a, b, alignment=alignment, t=t, force=True).save_pretrained(tmp_path / "live", max_shard_size=SHARD)
        assert_same(tensors(tmp_path / "out" / f"t-{t:g}"), tensors(tmp_path / "live"))
    assert_same(tensors(tmp_path / "out" / "t-0"), tensors(tmp_path / "a"))
    assert len(list((tmp_path / "out" / "t-1").glob("*.safetensors"))) > 1


def test_several_points_are_those_of_single_merges(pair):
    assert cli.main(command(pair, "--t", "0.25", "1", "0.25")) == 0
    assert sorted(path.name for path in (pair / "out").iterdir()) == ["hf_moe_lmc_manifest.json", "t-0.25", "t-1"]
    (pair / "out").rename(pair / "several")
    for t in ("0.25", "1"):
        assert cli.main(command(pair, "--t", t, "--overwrite")) == 0
        together = {path.name: path.read_bytes() for path in (pair / "several" / f"t-{t}").iterdir()}
        single = {path.name: path.read_bytes() for path in (pair / "out").iterdir()}
        assert {*together} == {*single}
        assert [name for name in single if single[name] != together[name]] == ["README.md"]
        card = together["README.md"].decode()
        assert card.replace(f'from_pretrained("t-{t}"', 'from_pretrained("out"') == single["README.md"].decode()


@pytest.mark.parametrize("saved", ["original", "fused"])
@pytest.mark.parametrize("layout", ["kept", "original", "fused"])
def test_layouts(saved, layout, pair):
    live = MixtralForCausalLM.from_pretrained(pair / "a")
    live.save_pretrained(pair / "saved", save_original_format=saved == "original")
    merge(pair / "saved", pair / "b", t=0.0, output=pair / "out", layout=layout)
    fused = (saved if layout == "kept" else layout) == "fused"
    assert any(key.endswith("experts.gate_up_proj") for key in tensors(pair / "out")) == fused
    model, loading = AutoModelForCausalLM.from_pretrained(pair / "out", output_loading_info=True)
    assert not any(loading.values())
    assert_same(model.state_dict(), live.state_dict())


def test_another_dtype(pair):
    """What is written wider is computed wider: float32 out of bfloat16 is not rounded to bfloat16."""
    a, b = (AutoModelForCausalLM.from_pretrained(pair / name, dtype=torch.bfloat16) for name in ("a", "b"))
    pair = pair / "bf16"
    a.save_pretrained(pair / "a")
    b.save_pretrained(pair / "b")
    assert cli.main(command(pair, "--dtype", "float32")) == 0
    assert json.loads((pair / "out" / "config.json").read_text())["dtype"] == "float32"
    assert {tensor.dtype for tensor in tensors(pair / "out").values()} == {torch.float32}
    model = AutoModelForCausalLM.from_pretrained(pair / "out")
    expected = merge(a.float(), b.float(), alignment=align(a, b), allow_other_weights=True)
    assert_same(model.state_dict(), expected.state_dict())


def test_values_too_large_for_the_dtype_are_refused(pair, capsys):
    model = MixtralForCausalLM.from_pretrained(pair / "a")
    with torch.no_grad():
        model.model.norm.weight[3] = 1e6
    model.save_pretrained(pair / "a", max_shard_size=SHARD)
    assert cli.main(command(pair, "--dtype", "float16")) == 3
    assert "model.norm.weight holds NaN, infinite values, or values too large" in capsys.readouterr().err
    assert sorted(path.name for path in pair.iterdir()) == ["a", "b"]


def test_tied_weights_stay_tied(tmp_path):
    model = build("mixtral", 0)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    for name in ("a", "b"):
        scramble(model)[0].save_pretrained(tmp_path / name, max_shard_size=SHARD)
    for layout in ("kept", "original", "fused"):
        merge(tmp_path / "a", tmp_path / "b", output=tmp_path / layout, layout=layout)
        assert "lm_head.weight" not in tensors(tmp_path / layout)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / layout)
        assert merged.lm_head.weight is merged.model.embed_tokens.weight


def test_companions_are_copied_as_bytes(pair):
    companions = {
        "generation_config.json": b'{ "odd":   "spacing" }',
        "tokenizer.json": b"{}\r\n",
        "tokenizer_config.json": b"{}\n\n",
        "tokenizer.model": b"\x00\xff",
        "special_tokens_map.json": b"\r\n{}",
        "chat_template.jinja": b"{{ '\xc3\xbc' }}",
        "additional_chat_templates/tools.jinja": b"{{ 1 }}",
        "preprocessor_config.json": b"{}",
    }
    others = {"modeling_evil.py": b"", "training_args.bin": b"", "notes.txt": b""}
    (pair / "a" / "additional_chat_templates").mkdir()
    (pair / "a" / "vocabulary").mkdir()
    for name, content in (companions | others).items():
        (pair / "a" / name).write_bytes(content)
    assert cli.main(command(pair)) == 0
    written = {str(file.relative_to(pair / "out")): file for file in (pair / "out").rglob("*") if file.is_file()}
    assert {name: written[name].read_bytes() for name in companions} == companions
    assert written["config.json"].read_bytes() == (pair / "a" / "config.json").read_bytes()
    index = json.loads(written["model.safetensors.index.json"].read_text())
    assert index == json.loads((pair / "a" / "model.safetensors.index.json").read_text()) | {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors(pair / "out").values())}
    }
    assert not others.keys() & written.keys()


def test_the_manifest(pair, capsys):
    alignment = align(pair / "a", pair / "b")
    alignment.save_pretrained(pair / "alignment")
    assert cli.main(command(pair, "--alignment", str(pair / "alignment"), "--t", "0.25")) == 0
    manifest = json.loads((pair / "out" / "hf_moe_lmc_manifest.json").read_text())
    digests = {
        key: xxhash.xxh3_128_hexdigest(tensor.contiguous().view(-1).view(torch.uint8).numpy())
        for key, tensor in tensors(pair / "out").items()
    }
    assert manifest.pop("xxh3") == digests
    assert manifest.pop("versions").keys() == {"hf_moe_lmc", "torch", "transformers"}
    assert manifest == {
        "format": 2,
        "command": "merge",
        "models": [{"name": str(pair / name), "commit": None} for name in "ab"],
        "shares": [0.75, 0.25],
        "alignments": [alignment.digest],
        "repairs": [],
        "layout": "kept",
        "dtype": None,
    }


def test_a_dry_run_says_what_it_would_do(pair, capsys):
    assert cli.main(command(pair, "--t", "0", "0.5", "--repair", "norms", "--dry-run")) == 0
    head, to_do, *shown = capsys.readouterr().out.splitlines()
    order = "align by the expert order auto, unless all is in one order already"
    assert to_do == f"to do                      {order}; average at t = 0, 0.5; repair by norms"
    assert head == "A dry run: nothing was written; the work itself takes"
    sizes = {key: tensor.nbytes for key, tensor in tensors(pair / "a").items()}
    size, moe = sum(sizes.values()), sum(size for key, size in sizes.items() if "block_sparse_moe" in key)
    assert shown[0] == "Mixture-of-Experts layers  2"
    assert shown[1:3] == [
        f"to read                    {2 * (size + moe) / 1e3:.3g} kB",  # to align, and to merge
        f"to write                   {2 * size / 1e3:.3g} kB",
    ]
    assert shown[3].startswith("memory at most about       ")
    assert shown[4].startswith("free on the output's disk")
    assert re.fullmatch(r"time, related models        \d.* by 1 process, \d.* by 8, \d.* by 64", shown[-1])
    assert sorted(path.name for path in pair.iterdir()) == ["a", "b"]


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_manifest_of_several_points(pair):
    merge(pair / "a", pair / "b", alignment="none", t=[0.25, 1.0], repairs=["norms", "gram"], output=pair / "out")
    known = json.loads((pair / "out" / "hf_moe_lmc_manifest.json").read_text())
    assert known["format"] == 2
    assert {name: entry["shares"] for name, entry in known["folders"].items()} == {
        "t-0.25": [0.75, 0.25],
        "t-1": [0.0, 1.0],
    }
    for name, entry in known["folders"].items():
        own = json.loads((pair / "out" / name / "hf_moe_lmc_manifest.json").read_text())
        assert {key: own[key] for key in entry} == entry
        assert own["alignments"] == [None]
        assert own["repairs"] == ["norms", "gram"]


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "gpt_oss", "moe_vit shared", "moe_gpt2 sparse"])
def test_a_live_model_is_written_as_it_saves_itself(name, tmp_path):
    """Keys, shapes, values and configuration of `save_pretrained`, and nothing of random weights when it is loaded."""
    a, b = (build(name, seed) for seed in (0, 1))
    merged = merge(a, b, t=0.3, force=True)
    merged.save_pretrained(tmp_path / "saved")
    out = merge(a, b, t=0.3, output=tmp_path / "out", force=True)
    assert_same(tensors(out), tensors(tmp_path / "saved"))
    assert json.loads((out / "config.json").read_text()) == json.loads((tmp_path / "saved" / "config.json").read_text())
    generation = tmp_path / "saved" / "generation_config.json"
    assert generation.exists() == (out / generation.name).exists()
    loaded, loading = type(a).from_pretrained(out, output_loading_info=True)
    assert not any(loading.values())
    assert_same(loaded.state_dict(), merged.state_dict())
    record = json.loads((out / "hf_moe_lmc_manifest.json").read_text())
    assert record["models"] == [{"name": type(a).__name__, "commit": None}] * 2


@pytest.mark.parametrize("layout", ["original", "fused"])
def test_layouts_of_live_models(layout, pair):
    a, b = (AutoModelForCausalLM.from_pretrained(pair / name) for name in "ab")
    out = merge(a, b, t=0.5, output=pair / "out", layout=layout, dtype=torch.bfloat16)
    assert any(key.endswith("experts.gate_up_proj") for key in tensors(out)) == (layout == "fused")
    assert {tensor.dtype for tensor in tensors(out).values()} == {torch.bfloat16}
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert_same(loaded.state_dict(), {k: v.bfloat16() for k, v in merge(a, b, t=0.5).state_dict().items()})


def test_live_and_written_models_are_merged_together(pair):
    """In either order, as both from disk."""
    a, b = (AutoModelForCausalLM.from_pretrained(pair / name) for name in "ab")
    expected = merge(a, b, t=0.3).state_dict()
    for pair_of_both in ((a, pair / "b"), (pair / "a", b)):
        out = merge(*pair_of_both, t=0.3, output=pair / "out", overwrite=True)
        assert_same(AutoModelForCausalLM.from_pretrained(out).state_dict(), expected)
        assert_same(merge(*pair_of_both, t=0.3).state_dict(), expected)


def test_tied_live_models_stay_tied(tmp_path):
    model, other = (models.draw_weights(models.mixtral(tie_word_embeddings=True)) for _ in "ab")
    other.tie_weights()
    scramble(other)[0].save_pretrained(tmp_path / "b")
    for pair in ((model, other), (model, tmp_path / "b")):
        assert_same(merge(*pair).state_dict(), model.state_dict())
        out = merge(*pair, output=tmp_path / "out", overwrite=True)
    assert "lm_head.weight" not in tensors(out)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert_same(loaded.state_dict(), model.state_dict())


def test_modules_that_are_no_models_of_transformers_are_not_written(tmp_path):
    """They can be aligned, and nothing is left of the attempt."""
    a, b = (build("mixtral", seed).model.layers for seed in (0, 1))
    assert align(a, b).layers
    with pytest.raises(BadInputError, match="a ModuleList is no model of Transformers, and cannot be written"):
        MoeAligner.from_pretrained(a, b).merge(output=tmp_path / "out", force=True)
    assert not [*tmp_path.iterdir()]
    with pytest.raises(BadInputError, match="a ModuleList is no model of Transformers"):
        MoeAligner.from_pretrained(a, b).merge(force=True)


def test_what_fails_leaves_nothing(pair):
    """A card that cannot be written, for example."""
    before = content(pair)

    def fail(folder: Path, name: str) -> None:
        assert (folder / "model.safetensors.index.json").exists()
        raise BadInputError("no card")

    work = Merge(open_models([pair / "a", pair / "b"]), [None])
    with pytest.raises(BadInputError, match="no card"):
        work.write(pair / "out", {"": shares_at(0.5)}, MergeRepairs(), WriteOptions(), fail)
    assert content(pair) == before
