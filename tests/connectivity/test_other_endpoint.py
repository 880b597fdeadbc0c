from collections import Counter
from copy import deepcopy

import pytest
import torch
from accelerate import Accelerator
from hf_moe_lmc.connectivity.other_endpoint import place_for
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_moe_lmc import scramble
from hf_moe_lmc.alignment import open_checkpoint
from hf_moe_lmc.checkpoints.stored_tensor import StoredTensor
from hf_moe_lmc.connectivity import LiveWeights, evaluate_path, path_evaluation
from tests.connectivity import finetuned


def test_the_same_curves_wherever_it_is_held(tmp_path, monkeypatch):
    """Held, every tensor is read once; from disk, at every point."""
    a, b = finetuned.pair("mixtral")
    scrambled, planted = scramble(deepcopy(b), seed=3)
    scrambled.save_pretrained(tmp_path)
    other, reads = open_checkpoint(tmp_path).tensors, Counter()
    read_into = StoredTensor.read_into

    def counted(self, tensor):
        reads[self.key] += 1
        read_into(self, tensor)

    monkeypatch.setattr(StoredTensor, "read_into", counted)
    data, found, totals = finetuned.loader(0, 8, family="mixtral"), {}, {}
    for place in ("device", "host memory", "disk"):
        monkeypatch.setattr(path_evaluation, "place_for", lambda *_, place=place: place)
        reads.clear()
        report = evaluate_path(
            a, other, planted.inverse(), data, 3, arrangements=("aligned",), repairs=("norms",), resamples=50,
            accelerator=Accelerator(cpu=True), memory=1,
        )  # fmt: skip
        found[place] = {name: curve.barrier for name, curve in report.curves.items()}
        totals[place] = reads.total()
    assert 2 * max(totals["device"], totals["host memory"]) < totals["disk"]
    assert found["device"] == found["host memory"] == found["disk"]


@pytest.mark.parametrize(("size", "free", "place"), [
    (101, 10_000, "disk"), (100, 260, "device"), (100, 259, "host memory"),
])  # fmt: skip
def test_where_it_fits(monkeypatch, size, free, place):
    with FakeTensorMode():
        own = torch.empty(30, dtype=torch.uint8, device="cuda")
    weights = LiveWeights(nn.Linear(1, 1))
    weights.resident = {"weight": own}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 20_000))
    assert place_for(size, weights, 100) == place
    weights.resident = {"weight": torch.empty(30, dtype=torch.uint8)}
    assert place_for(size, weights, 100) == ("disk" if size > 100 else "host memory")
