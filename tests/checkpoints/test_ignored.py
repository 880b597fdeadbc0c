"""Tensors that Transformers ignores, such as layers that predict further tokens, are part of a checkpoint."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.core_model_loading import dot_natural_key

from hf_moe_lmc import Alignment, align, apply, cli, merge
from hf_moe_lmc.alignment import open_model
from hf_moe_lmc.checkpoints import Checkpoint, CheckpointWriter, meta_model, place, read_config
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError
from hf_moe_lmc.hub import push_folder
from hf_moe_lmc.moe import act
from tests import families, models
from tests.checkpoints.faulty import edit_json

FURTHER_LAYER = "mtp.layers.0.mlp"
# Rows of zero experts; and a linear that is called otherwise in the checkpoint.
NOT_READ = ("longcat_flash", "hy_v4")
FURTHER = ("enorm.weight", "hnorm.weight", "eh_proj.weight", "mlp.experts.0.gate_proj.weight")


def stored(folder: Path) -> dict[str, Tensor]:
    return {key: tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()}


def opened(folder: Path) -> Checkpoint:
    return Checkpoint.open(folder, meta_model(read_config(folder)))


def add(folder: Path, keys: list[str], seed: int = 0) -> dict[str, Tensor]:
    """Store further tensors in the last file of a checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    return store(folder, {key: torch.randn(3, 5, generator=generator).to(torch.bfloat16) for key in keys})


def store(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    file = sorted(folder.glob("*.safetensors"))[-1]
    save_file(load_file(file) | tensors, file, {"format": "pt"})
    if (index := folder / "model.safetensors.index.json").exists():
        edit_json(index, lambda values: values["weight_map"].update(dict.fromkeys(tensors, file.name)))
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
    """Save a model of a family, and with it tensors that Transformers ignores, which are returned.

    Some of them are a copy of its last routed layer.
    """
    model = families.build(family)
    model.save_pretrained(folder, max_shard_size="100KB")
    keys = sorted(map(example, model._keys_to_ignore_on_load_unexpected))
    return add(folder, keys, seed) | store(folder, further_layer(folder))


def further_layer(folder: Path, name: str = FURTHER_LAYER) -> dict[str, Tensor]:
    """A copy of the tensors of the last routed layer."""
    tensors = stored(folder)
    last = max((key.partition(".experts.")[0] for key in tensors if ".experts." in key), key=dot_natural_key)
    return {f"{name}{key.removeprefix(last)}": tensors[key] for key in tensors if key.startswith(f"{last}.")}


@pytest.mark.parametrize("family", with_ignored())
def test_every_family_carries_what_transformers_ignores(family, tmp_path):
    added = save(family, tmp_path / "a")
    before = stored(tmp_path / "a").keys() - added.keys()
    source = opened(tmp_path / "a")
    assert source.ignored.keys() == added.keys()
    assert set(source) == {*source.model.state_dict(), *added} - {*source.model.all_tied_weights_keys}
    assert all(torch.equal(source[key], tensor) for key, tensor in added.items())
    model = open_model(tmp_path / "a")
    assert [layer.name for layer in model.further_layers] == [FURTHER_LAYER] * (family not in NOT_READ)
    for layer in model.further_layers:
        like = next(own for own in reversed(model.layers) if own.router).read(source)
        assert layer.read(source).group == like.group
        assert all(map(torch.equal, layer.read(source).tensors().values(), like.tensors().values()))
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
        assert torch.equal(back[key], torch.lerp(a[key].float(), b[key].float(), 0.5).to(a[key].dtype))
        assert torch.equal(back[key], a[key]) == torch.equal(a[key], b[key])


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


def test_experts_of_further_layers_are_aligned(tmp_path):
    name, folders = "model.layers.3.mlp", [deepseek(tmp_path / side, 3) for side in "ab"]
    for folder in folders:
        add(folder, ["model.layers.3.eh_proj.weight"])
    a = store(folders[0], further_layer(folders[0], name))
    (spec,) = open_model(folders[0]).further_layers
    layer = spec.read(a)
    planted = spec.group.random_derangement(*layer.symmetry_shape, generator=torch.Generator().manual_seed(0))
    b = store(folders[1], spec.write(act(planted, layer), a))
    assert not any(torch.equal(a[key], b[key]) for key in spec.experts.tensor_names)

    def holds(folder: Path, expected: dict[str, Tensor]) -> bool:
        return all(torch.equal(stored(folder)[key], expected[key]) for key in spec.tensor_names)

    alignment = align(*folders)
    assert alignment.symmetries.keys() == {name, *(own.name for own in open_model(folders[0]).layers)}
    apply(alignment, folders[1], tmp_path / "aligned")
    merge(*folders, alignment=alignment, output=tmp_path / "merged")
    merge(*folders, alignment="none", output=tmp_path / "naive")
    assert [holds(tmp_path / out, a) for out in ("aligned", "merged", "naive")] == [True, True, False]
    # Transformers loads no such layer: an alignment of the model's own layers leaves it as it is.
    live = [DeepseekV3ForCausalLM.from_pretrained(folder) for folder in folders]
    apply(align(*live), folders[1], tmp_path / "own")
    assert holds(tmp_path / "own", b)
    # Where a tensor is missing or another is there, nothing is known of the layer.
    lost = store(folders[1], {f"{name}.experts.0.bias": torch.ones(1)})
    apply(align(*folders), folders[1], tmp_path / "bytes")
    assert holds(tmp_path / "bytes", b)
    assert stored(tmp_path / "bytes").items() >= lost.items()


def test_an_alignment_with_further_layers_suits_a_model_that_has_lost_them(tmp_path):
    folders = [tmp_path / side for side in "ab"]
    for seed, folder in enumerate(folders):
        save("qwen3_next", folder, seed)
    alignment = align(*folders)
    assert FURTHER_LAYER in alignment.symmetries
    live = families.build("qwen3_next")
    live.save_pretrained(tmp_path / "lost")
    alignment.apply(live)
    apply(alignment, tmp_path / "lost", tmp_path / "aligned")
    with pytest.raises(IncompatiblePairError, match=r"layer vit\.x of the alignment does not exist"):
        Alignment({**alignment.layers, "vit.x": alignment.layers[FURTHER_LAYER]}).apply(live)


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
