"""Where checkpoints are matched, and within how much memory."""

import pytest
import torch

from hf_moe_lmc import cli
from hf_moe_lmc.alignment import AlignmentConfig, Resources, align_pair, open_models, pairwise, scramble
from hf_moe_lmc.errors import BadInputError
from tests import models
from tests.pretend_device import pretend_device

NEEDED = {"model.layers.0.mlp": 10, "model.layers.1.mlp": 30}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    model = models.build("mixtral", dtype=torch.bfloat16)
    model.save_pretrained(folder / "a", max_shard_size="8KB")
    scramble(model)[0].save_pretrained(folder / "b", save_original_format=False)
    return folder / "a", folder / "b"


def test_checkpoints_are_read_to_another_device_and_matched_there(folders, monkeypatch):
    pair = open_models(folders)
    here = align_pair(pair, AlignmentConfig())
    seen = []

    def watch(reference, *rest):
        seen.append(reference.experts.up_proj.device)
        return align_layers(reference, *rest)

    align_layers = pairwise.align_layers
    monkeypatch.setattr(pairwise, "align_layers", watch)
    with pretend_device() as device:
        found = align_pair(pair, AlignmentConfig(), Resources(device))
    assert set(seen) == {device}
    assert found.symmetries == here.symmetries
    assert found.other == here.other


def test_a_layer_beyond_the_memory_is_refused(folders, tmp_path, capsys):
    command = ["align", *map(str, folders), "-o", str(tmp_path / "out")]
    merge = ["merge", *command[1:]]
    for arguments in (command, [*command, "--dry-run"], merge, [*merge[:3], merge[2], *merge[3:]]):
        assert cli.main([*arguments, "--memory", "1MB"]) == 3
        shown = capsys.readouterr().err
        assert "layer model.layers.0.mlp: matching it needs 0.26" in shown
        assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert cli.main([*command, "--memory", "1GiB", "--device", "cpu", "--dry-run"]) == 0
    assert "layers are matched on      cpu" in capsys.readouterr().out


def test_a_gpu_is_taken_where_the_largest_layer_fits(monkeypatch):
    assert Resources().device_for(NEEDED) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (30, 100))
    assert Resources().device_for(NEEDED) == torch.device("cuda", 1)
    assert Resources("cpu").device_for(NEEDED) == torch.device("cpu")
    assert Resources().device_for({"model.layers.0.mlp": 31}) == torch.device("cpu")


@pytest.mark.parametrize("device", ["nowhere", "meta", "mps:7"])
def test_a_device_that_computes_nothing(device):
    with pytest.raises(BadInputError, match=rf"{device} is no device that computes here: .+; give another"):
        Resources(device).device_for(NEEDED)
