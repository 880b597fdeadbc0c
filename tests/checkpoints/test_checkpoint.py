"""Reading under module names."""

import pytest

from hf_moe_lmc.checkpoints import Checkpoint, meta_model, read_config
from hf_moe_lmc.checkpoints.stored_tensor import StoredTensor


@pytest.fixture
def opened(saved) -> Checkpoint:
    return Checkpoint.open(saved / "single", meta_model(read_config(saved / "single")))


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The keys whose values are read from now on."""
    keys, read_into = [], StoredTensor.read_into
    monkeypatch.setattr(
        StoredTensor, "read_into", lambda self, tensor: (keys.append(self.key), read_into(self, tensor))
    )
    return keys


def test_one_tensor_is_read_and_no_other(opened, reads):
    opened["model.norm.weight"]
    assert reads == ["model.norm.weight"]


def test_the_tensor_of_all_experts_reads_theirs_and_no_others(opened, reads):
    opened["model.layers.1.mlp.experts.down_proj"]
    assert reads == [f"model.layers.1.block_sparse_moe.experts.{expert}.w2.weight" for expert in range(5)]


def test_a_pass_over_all_names_reads_each_stored_tensor_once(opened, reads):
    assert sum(tensor.numel() for _, tensor in opened.items()) == sum(t.numel() for t in opened.on_meta().values())
    assert sorted(reads) == sorted(opened.stored)
