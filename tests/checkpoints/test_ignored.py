"""Tensors that Transformers ignores, such as layers that predict further tokens, are part of a checkpoint."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from hf_moe_lmc import align, apply, cli, merge
from hf_moe_lmc.alignment import open_model
from hf_moe_lmc.checkpoints import Checkpoint, CheckpointWriter, meta_model, place, read_config
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.hub import push_folder
from tests import families, models
from tests.checkpoints.faulty import edit_json

FURTHER = ("enorm.weight", "hnorm.weight", "eh_proj.weight", "mlp.experts.0.gate_proj.weight")


def stored(folder: Path) -> dict[str, Tensor]:
    return {key: tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()}


def opened(folder: Path) -> Checkpoint:
    return Checkpoint.open(folder, meta_model(read_config(folder)))


def add(folder: Path, keys: list[str], seed: int = 0) -> dict[str, Tensor]:
    """Store further tensors in the last file of a checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {key: torch.randn(3, 5, generator=generator).to(torch.bfloat16) for key in keys}
    file = sorted(folder.glob("*.safetensors"))[-1]
    save_file(load_file(file) | tensors, file, {"format": "pt"})
    if (index := folder / "model.safetensors.index.json").exists():
        edit_json(index, lambda values: values["weight_map"].update(dict.fromkeys(keys, file.name)))
    return tensors


def example(pattern: str) -> str:
    """A key that a simple pattern of Transformers matches."""
    key = re.sub(r"\(\^\|\\\.\)|[\^$]|\(.*?\)\?", "", pattern)
    key = key.replace(r"\d+", "7").replace(r"\.", ".").replace(".*", "") + ".0.x"
    assert re.search(pattern, key)
    return key


def with_ignored() -> list[str]:
    return [name for name in families.supported() if families.build(name)._keys_to_ignore_on_load_unexpected]


def copy(source: Checkpoint, folder: Path, layout: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    writer = CheckpointWriter(folder, place(source, folder, layout, dtype), source.model)
    written = writer.write(source, source)
    writer.read_again(written, writer.keys)
    writer.finish(written)
    return stored(folder)


def save(family: str, folder: Path, seed: int = 0) -> dict[str, Tensor]:
    """Save a model of a family, and with it tensors that Transformers ignores, which are returned."""
    model = families.build(family)
    model.save_pretrained(folder, max_shard_size="100KB")
    return add(folder, sorted(map(example, model._keys_to_ignore_on_load_unexpected)), seed)


@pytest.mark.parametrize("family", with_ignored())
def test_every_family_carries_what_transformers_ignores(family, tmp_path):
    added = save(family, tmp_path / "a")
    before = stored(tmp_path / "a").keys() - added.keys()
    source = opened(tmp_path / "a")
    assert source.ignored.keys() == added.keys()
    assert set(source) == {*source.model.state_dict(), *added} - {*source.model.all_tied_weights_keys}
    assert all(torch.equal(source[key], tensor) for key, tensor in added.items())
    for layout in ("kept", "original", "fused"):
        written = copy(source, tmp_path / layout, layout)
        assert all(torch.equal(written[key], tensor) for key, tensor in added.items())
        if layout == "kept":
            assert written.keys() == before | added.keys()
        edit = tmp_path / layout / "config.json"
        edit.write_bytes((tmp_path / "a" / "config.json").read_bytes())
        assert opened(tmp_path / layout).ignored.keys() == added.keys()


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_next", "longcat_flash"])
def test_a_merge_goes_to_the_hub_and_comes_back(family, hub, tmp_path):
    a, b = (save(family, tmp_path / name, seed) for seed, name in enumerate("ab"))
    merge(tmp_path / "a", tmp_path / "b", alignment="none", t=0.5, output=tmp_path / "merged")
    push_folder(tmp_path / "merged", "org/merged", license="mit")
    back = open_model("org/merged").checkpoint
    assert back.folder != tmp_path / "merged"
    assert back.ignored.keys() == a.keys()
    for key in a:
        assert torch.equal(back[key], torch.lerp(a[key].float(), b[key].float(), 0.5).bfloat16())
        assert not torch.equal(back[key], a[key])


def deepseek(folder: Path, layers: int) -> Path:
    config = DeepseekV3Config(
        num_hidden_layers=layers,
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=4,
        vocab_size=models.VOCABULARY,
    )
    models.draw_weights(DeepseekV3ForCausalLM(config)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("further", [1, 2])
def test_further_layers_are_numbered_on_from_the_decoders(tmp_path, further):
    """Transformers knows number 61 only, that of the published model."""
    folder = deepseek(tmp_path / "a", 3)
    added = add(folder, [f"model.layers.{3 + number}.{part}" for number in range(further) for part in FURTHER])
    assert opened(folder).ignored.keys() == added.keys()


def test_a_decoder_layer_too_many_is_still_refused(tmp_path):
    folder = deepseek(tmp_path / "a", 3)
    add(folder, ["model.layers.3.input_layernorm.weight"])
    with pytest.raises(BadInputError, match=r"model\.layers\.3\.input_layernorm\.weight is not part of a DeepseekV3"):
        opened(folder)


def test_codes_of_8_bits_are_written_as_their_values(tmp_path):
    folder = deepseek(tmp_path / "a", 3)
    file = folder / "model.safetensors"
    codes = torch.arange(12, dtype=torch.uint8).view(torch.float8_e4m3fn).reshape(3, 4)
    save_file(load_file(file) | {"model.layers.61.eh_proj.weight": codes}, file)
    written = copy(opened(folder), tmp_path / "b", "original", torch.bfloat16)
    assert torch.equal(written["model.layers.61.eh_proj.weight"].float(), codes.float())
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}


def test_apply_and_merge(tmp_path):
    folders = [deepseek(tmp_path / name, 3) for name in "ab"]
    a, b = (add(folder, [f"model.layers.3.{part}" for part in FURTHER], seed) for seed, folder in enumerate(folders))
    alignment = align(*folders)
    apply(alignment, folders[1], tmp_path / "aligned")
    assert all(torch.equal(stored(tmp_path / "aligned")[key], tensor) for key, tensor in b.items())
    merge(*folders, alignment=alignment, t=0.25, output=tmp_path / "merged")
    merged = stored(tmp_path / "merged")
    assert a.keys() <= merged.keys()
    for key in a:
        assert torch.equal(merged[key], torch.lerp(a[key].float(), b[key].float(), 0.25).to(torch.bfloat16))


@pytest.mark.parametrize("kept", [{"a"}, {"b"}, {"a", "c"}])
def test_models_that_have_lost_what_transformers_ignores(tmp_path, kept):
    """As fine-tunes have: the tensor of the first model with a share stands for that of a model without."""
    folders = {name: deepseek(tmp_path / name, 3) for name in "abc"}
    key = "model.layers.3.eh_proj.weight"
    own = {name: add(folders[name], [key], seed)[key] for seed, name in enumerate(sorted(kept))}
    merge(folders["a"], [folders["b"], folders["c"]], alignment="none", shares=[1, 1, 2], output=tmp_path / "mean")
    merged = stored(tmp_path / "mean")
    if "c" in kept:
        shares = torch.tensor([1, 1, 2]) / 4
        assert torch.equal(merged[key], (shares[:2].sum() * own["a"].float() + shares[2] * own["c"].float()).bfloat16())
    elif "a" in kept:
        assert torch.equal(merged[key], own["a"])
    else:
        assert key not in merged
    record = json.loads((tmp_path / "mean" / "hf_moe_lmc_manifest.json").read_text())
    side = "other" if kept == {"b"} else "reference"
    assert f"1 tensors that Transformers ignores, such as {key}, are in the {side} only" in record["differences"]
    merge(folders["a"], folders["b"], alignment="none", t=[0.5, 1.0], output=tmp_path / "line")
    assert [key in stored(tmp_path / "line" / f"t-{t}") for t in ("0.5", "1")] == ["a" in kept, "b" in kept]


def test_what_is_carried_and_what_stays_behind_is_named(tmp_path, capsys):
    """By `inspect`, before and after the work, and in the manifest."""
    folders = [deepseek(tmp_path / name, 3) for name in "ab"]
    keys = sorted(f"model.layers.3.{part}" for part in FURTHER)
    for folder in folders:
        add(folder, keys)
        (folder / "training_args.bin").write_bytes(b"pickle")
        (folder / "notes.txt").write_text("")
    a, b, out = *map(str, folders), str(tmp_path / "out")
    carried = f"carried along, though Transformers ignores it: {', '.join(keys)}"
    left = ["left behind: notes.txt (not known", "left behind: training_args.bin (pickles are never read or copied)"]
    said = []
    for words in (["inspect", a], ["merge", a, b, "--dry-run", "-o", out], ["merge", a, b, "-o", out]):
        assert cli.main([*words, "--quiet"]) == 0
        said.append(capsys.readouterr().out)
    assert all(carried in text for text in said)
    assert all(line in text for line in left for text in said[1:])
    manifest = json.loads((tmp_path / "out" / "hf_moe_lmc_manifest.json").read_text())
    assert manifest["carried"] == keys
    assert manifest["left_behind"].keys() == {"notes.txt", "training_args.bin"}
