"""Checkpoints written from models that never were on disk."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_moe_lmc.checkpoints import Checkpoint, CheckpointWriter, meta_model, place, read_config
from hf_moe_lmc.names import Layout
from tests import families, models
from tests.checkpoints.faulty import edit_tensor


def stored(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {file.name: load_file(file) for file in folder.glob("*.safetensors")}


def write(model: PreTrainedModel, folder: Path, layout: Layout = "kept", dtype: torch.dtype | None = None) -> None:
    writer = CheckpointWriter(folder, place(model, folder, layout, dtype), model)
    tensors = model.state_dict()
    written = {}
    for group in writer.groups:  # one at a time
        written |= writer.write(tensors, group.names)
    assert written.keys() == set(writer.keys)
    writer.read_again(written, writer.keys)
    writer.finish(written)


def same(a: Path, b: Path) -> bool:
    """File by file, key by key, bit by bit."""
    first, second = stored(a), stored(b)
    return first.keys() == second.keys() and all(
        first[name].keys() == second[name].keys()
        and all(torch.equal(first[name][key], second[name][key]) for key in first[name])
        for name in first
    )


@pytest.mark.parametrize("family", families.supported())
def test_a_live_model_is_written_as_it_saves_itself(family, tmp_path):
    model = families.build(family)
    model.save_pretrained(tmp_path / "saved")
    write(model, tmp_path / "kept")
    assert same(tmp_path / "saved", tmp_path / "kept")
    model.save_pretrained(tmp_path / "saved-fused", save_original_format=False)
    write(model, tmp_path / "fused", "fused")
    assert same(tmp_path / "saved-fused", tmp_path / "fused")


@pytest.mark.parametrize("layout", ["kept", "original", "fused"])
def test_a_skeleton_has_the_places_of_its_model(layout, tmp_path):
    model = models.build("mixtral", dtype=torch.bfloat16)
    model.config.architectures = ["MixtralForCausalLM"]
    skeleton = meta_model(model.config).to(torch.bfloat16)
    assert place(skeleton, tmp_path, layout) == place(model, tmp_path, layout)
    assert place(skeleton, tmp_path, layout, torch.float32) == place(model.float(), tmp_path, layout)


def test_a_loaded_model_is_written_as_it_saves_itself(saved, tmp_path):
    """It remembers how it was stored."""
    model = AutoModelForCausalLM.from_pretrained(saved / "sharded")
    write(model, tmp_path / "kept")
    assert same(saved / "single", tmp_path / "kept")


def test_of_tied_tensors_one_is_written(tmp_path):
    config = models.mixtral().config
    config.update({"tie_word_embeddings": True, "architectures": ["MixtralForCausalLM"]})
    model = models.draw_weights(type(models.mixtral())(config))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path / "saved")
    write(model, tmp_path / "kept")
    assert same(tmp_path / "saved", tmp_path / "kept")
    assert "lm_head.weight" not in stored(tmp_path / "kept")["model.safetensors"]
    assert place(meta_model(config), tmp_path).keys() == place(model, tmp_path).keys()


def test_shards_of_a_large_model(monkeypatch, tmp_path):
    monkeypatch.setattr("hf_moe_lmc.checkpoints.layout.SHARD_BYTES", 8000)
    model = models.build("mixtral", dtype=torch.float32)
    write(model, tmp_path / "kept")
    shards = stored(tmp_path / "kept")
    assert len(shards) == 3
    assert all(sum(tensor.nbytes for tensor in shard.values()) <= 8000 for shard in shards.values())
    index = "model.safetensors.index.json"
    assert "weight_map" in (tmp_path / "kept" / index).read_text()
    model.config.save_pretrained(tmp_path / "kept")
    loaded = Checkpoint.open(tmp_path / "kept", model)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_experts_of_several_dtypes_change_places_without_rounding(single, tmp_path):
    """A place that held bfloat16 has room for float32, that of experts only."""
    expert = "model.layers.0.block_sparse_moe.experts.2.w2.weight"
    edit_tensor(expert, lambda tensor: tensor.bfloat16())(single)
    edit_tensor("model.norm.weight", lambda tensor: tensor.bfloat16())(single)
    checkpoint = Checkpoint.open(single, meta_model(read_config(single)))
    placement = place(checkpoint, tmp_path)
    assert placement[expert].dtype == torch.float32
    assert placement["model.norm.weight"].dtype == torch.bfloat16
    name = "model.layers.0.mlp.experts.down_proj"
    writer = CheckpointWriter(tmp_path / "out", place(checkpoint, tmp_path / "out"), checkpoint.model)
    turned = dict(checkpoint) | {name: checkpoint[name].roll(1, 0)}
    writer.finish(writer.write(turned, turned))
    assert torch.equal(stored(tmp_path / "out")["model.safetensors"][expert], checkpoint[name][1])
