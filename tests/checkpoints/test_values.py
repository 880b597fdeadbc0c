"""Faults of values, found while they are read or written."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from hf_moe_lmc import cli
from hf_moe_lmc.checkpoints import Checkpoint
from hf_moe_lmc.checkpoints.durable import Journal
from tests.checkpoints.faulty import edit_tensor, edit_tensors, failed, shard_of, with_value, worked

ROUTER = "model.layers.1.block_sparse_moe.gate.weight"
EXPERT = "model.layers.0.block_sparse_moe.experts.2.w2.weight"
ATTENTION = "model.layers.0.self_attn.k_proj.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@pytest.mark.parametrize("key", [ROUTER, EXPERT, ATTENTION, NORM, HEAD])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_numbers(sharded, refused, key, value):
    edit_tensor(key, with_value(value))(sharded)
    refused(sharded, f"{shard_of(sharded, key)}: {key} holds NaN or infinite values")


@pytest.mark.parametrize("key", [EXPERT, NORM])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_no_numbers_of_another_dtype(single, refused, key, dtype):
    edit_tensor(key, with_value(float("nan"), dtype))(single)
    refused(single, f"{single / 'model.safetensors'}: {key} holds NaN or infinite values")


@pytest.mark.parametrize("key", [EXPERT, NORM])
def test_no_numbers_in_the_reference(single, saved, tmp_path, capsys, key):
    edit_tensor(key, with_value(float("nan")))(single)
    found = failed(capsys, tmp_path / "out", "merge", single, saved / "sharded")
    assert found.code == 3
    assert f"{single / 'model.safetensors'}: {key} holds NaN" in found.line


@pytest.mark.parametrize("key", [EXPERT, NORM])
def test_too_large_for_float16(single, saved, tmp_path, capsys, key):
    """The output is what does not fit: the merge has half of what the checkpoint has."""
    edit_tensor(key, with_value(1e6))(single)
    found = failed(
        capsys, tmp_path / "out", "merge", saved / "single", single, "--expert-order", "none", "--dtype", "float16"
    )
    assert found.code == 3
    assert f"error: {key}" in found.line
    assert "too large for torch.float16; try another --dtype" in found.line


def test_too_small_for_float16(single, saved, tmp_path, capsys, caplog, monkeypatch):
    """They become 0, and how many do is said, also by a run that goes on where another was interrupted."""
    worked(capsys, tmp_path / "out", "merge", saved / "single", single, "--t", "1", "--dtype", "float16")
    assert "became 0" not in caplog.text
    edit_tensor(EXPERT, lambda tensor: tensor * 1e-30)(single)
    count = load_file(single / "model.safetensors")[EXPERT].numel()

    def interrupted(journal, step, note):
        record(journal, step, note)
        if step == EXPERT.split(".block_sparse_moe")[0] + ".mlp":
            raise KeyboardInterrupt

    record, merge = Journal.record, ["merge", saved / "single", single, "--t", "1", "--dtype", "float16"]
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "record", interrupted)
        assert cli.main([*map(str, merge), "-o", str(tmp_path / "small")]) == 130
    worked(capsys, tmp_path / "small", *merge)
    assert f"{count} values are too small for the dtype written and became 0, such as some of {EXPERT}" in caplog.text


def test_too_large_to_compare(single, refused, accepted):
    edit_tensor(EXPERT, with_value(3e38))(single)
    words = ("model.layers.0.mlp.experts.down_proj holds 3e+38", "cannot be compared")
    refused(single, *words, options=("--expert-order", "units"))
    edit_tensors(
        EXPERT, lambda tensors: tensors.update({key: 1e14 * torch.ones_like(t) for key, t in tensors.items()})
    )(single)
    words = ("layer model.layers.0.mlp of ", "such large weights need another expert order, as gate is")
    refused(single, *words, options=("--expert-order", "gram"))
    accepted(single, "--expert-order", "gate")


def test_a_difference_that_overflows(single, saved, tmp_path, capsys):
    """Half of 3e38 and half of -3e38 is 0, but their difference is no number of float32."""
    other = shutil.copytree(single, tmp_path / "other")
    for folder, value in ((single, 3e38), (other, -3e38)):
        edit_tensor("lm_head.weight", with_value(value))(folder)
    found = failed(capsys, tmp_path / "out", "merge", single, other)
    assert found.code == 3
    assert "lm_head.weight holds NaN, infinite values, or values too large for torch.float32" in found.line


@pytest.mark.parametrize(
    "change",
    [
        torch.zeros_like,
        lambda tensor: torch.full_like(tensor, 1e-42),  # not 0, but below the normal numbers of float32
        lambda tensor: torch.full_like(tensor, -0.0),
        lambda tensor: torch.full_like(tensor, 1e6),
    ],
    ids=["zero", "denormal", "negative zero", "large"],
)
def test_odd_but_numbers(single, saved, tmp_path, capsys, change):
    """t = 0 gives the reference back, bit for bit."""

    def all_experts(tensors):
        for key in tensors:
            if "expert" in key or "norm" in key:
                tensors[key] = change(tensors[key])

    edit_tensors(EXPERT, all_experts)(single)
    worked(capsys, tmp_path / "out", "merge", single, saved / "single", "--force", "--t", "0")
    expected, found = (load_file(folder / "model.safetensors") for folder in (single, tmp_path / "out"))
    assert all(torch.equal(found[key].view(torch.int32), expected[key].view(torch.int32)) for key in expected)


def test_identical_experts(single, accepted):
    def repeat(tensors):
        for key in tensors:
            if "expert" in key:
                tensors[key] = tensors[_first(key)].clone()

    edit_tensors(EXPERT, repeat)(single)
    accepted(single)


def _first(key: str) -> str:
    parts = key.split(".")
    parts[parts.index("experts") + 1] = "0"
    return ".".join(parts)


@pytest.mark.parametrize("file", ["config.json", "model-00003-of-00003.safetensors"])
@pytest.mark.parametrize("command", ["align", "merge"])
def test_a_file_that_changes_meanwhile(sharded, saved, tmp_path, capsys, monkeypatch, command, file):
    """As when a training run saves to the folder again."""
    read = Checkpoint.read

    def and_touch(self: Checkpoint, *args: object, **options: object):
        if self.folder == sharded:
            os.utime(sharded / file, ns=(1, 1))
        return read(self, *args, **options)

    monkeypatch.setattr(Checkpoint, "read", and_touch)
    found = failed(capsys, tmp_path / "out", command, saved / "single", sharded)
    assert found.code == 3
    assert f"{sharded / file} changed while it was read" in found.line


def test_a_file_that_shrinks_meanwhile(single, saved, tmp_path, capsys, monkeypatch):
    read = Checkpoint.read

    def and_cut(self: Checkpoint, names: tuple[str, ...], *args: object, **options: object):
        if self.folder == single and len(names) > 1:
            os.truncate(single / "model.safetensors", 5000)
        return read(self, names, *args, **options)

    monkeypatch.setattr(Checkpoint, "read", and_cut)
    found = failed(capsys, tmp_path / "out", "merge", saved / "single", single)
    assert found.code == 3
    assert f"{single / 'model.safetensors'} ended while" in found.line


def test_the_same_checkpoint_twice(single, tmp_path, caplog, capsys):
    """Harmless, and hardly meant."""
    again = tmp_path / "again"
    again.symlink_to(single)
    worked(capsys, tmp_path / "out", "merge", single, again)
    assert "the same checkpoint" in caplog.text
    expected, found = (load_file(folder / "model.safetensors") for folder in (single, tmp_path / "out"))
    assert all(torch.equal(found[key], expected[key]) for key in expected)
