"""Weights of live models: read, replaced for a while, given back; and where those of others are held."""

from collections import Counter, UserDict
from statistics import mode

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_moe_lmc.alignment import LiveWeights, load_into, temporarily_loaded
from hf_moe_lmc.alignment.live_weights import Cached, OnDevice, placed, placement_for
from hf_moe_lmc.errors import BadInputError
from tests.models import build, logits

NAMES = ["moe_vit shared", "mixtral"]


def offloaded(name: str, how: str, folder):
    model = build(name, dtype=torch.float32)
    if how == "cpu":
        return cpu_offload(model, execution_device="cpu")
    if how == "disk":
        return disk_offload(model, str(folder), execution_device="cpu")
    devices = {child: "disk" if i % 2 else "cpu" for i, (child, _) in enumerate(model.base_model.named_children())}
    devices = {f"{model.base_model_prefix}.{child}": device for child, device in devices.items()}
    devices |= {child: "cpu" for child, _ in model.named_children() if child != model.base_model_prefix}
    return dispatch_model(model, devices, main_device="cpu", offload_dir=str(folder))


@pytest.mark.parametrize("how", ["cpu", "disk", "mixed"])
@pytest.mark.parametrize("name", NAMES)
def test_offloaded_weights_are_read(name, how, tmp_path):
    expected, found = build(name, dtype=torch.float32).state_dict(), LiveWeights(offloaded(name, how, tmp_path))
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("how", ["resident", "cpu", "disk", "mixed"])
@pytest.mark.parametrize("name", NAMES)
def test_loaded_weights_are_given_back(name, how, tmp_path):
    other = build(name, seed=1, dtype=torch.float32)
    model = build(name, dtype=torch.float32) if how == "resident" else offloaded(name, how, tmp_path)
    before, wanted = logits(model), logits(other)
    assert not torch.allclose(before, wanted)
    files = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with temporarily_loaded(model) as weights:
        weights.load(other.state_dict())
        assert torch.equal(logits(model), wanted)
        own = build(name, dtype=torch.float32).state_dict()
        assert all(torch.equal(weights[key], own[key]) for key in own)
    assert torch.equal(logits(model), before)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == files


def test_weights_are_given_back_after_an_error():
    model = build("mixtral", dtype=torch.float32)
    before = logits(model)

    def fail() -> None:
        with temporarily_loaded(model) as weights:
            weights.load(build("mixtral", seed=1, dtype=torch.float32).state_dict())
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    assert torch.equal(logits(model), before)


def test_a_skeleton_has_no_weights():
    with pytest.raises(BadInputError, match="has no data; load the model's weights first"):
        LiveWeights(build("mixtral").to("meta"))


@pytest.mark.parametrize("name", NAMES)
def test_weights_for_good(name):
    model, other = (build(name, seed=seed, dtype=torch.float32) for seed in (0, 1))
    load_into(model, other.state_dict())
    assert torch.equal(logits(model), logits(other))


class Counted(UserDict):
    """Weights that count how often each is asked for."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        super().__init__(weights)
        self.asked = Counter()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.asked[name] += 1
        return super().__getitem__(name)


@pytest.mark.parametrize(("placement", "reads"), [("device", 1), ("host memory", 1), ("disk", 3)])
def test_weights_are_held_where_they_are_placed(placement, reads):
    """The same values, read once, or at every look."""
    model = build("mixtral", dtype=torch.float32)
    expected = build("mixtral", seed=1, dtype=torch.float32).state_dict()
    source = Counted(expected)
    held = placed(source, LiveWeights(model), placement)
    assert list(held) == list(source)
    for _ in range(3):
        assert all(torch.equal(held[name], tensor) for name, tensor in expected.items())
    assert mode(source.asked.values()) == reads  # type checks look at the first one, too


def test_weights_come_to_the_devices_of_a_model():
    """Offloaded ones have their place in host memory."""
    with FakeTensorMode():
        weights = LiveWeights(nn.Linear(2, 3))
        weights.resident = {"weight": torch.empty(3, 2, device="cuda")}
        brought = OnDevice(Cached({"weight": torch.empty(3, 2), "bias": torch.empty(3)}), weights)
        assert [brought[name].device.type for name in brought] == ["cuda", "cpu"]


@pytest.mark.parametrize(("size", "free", "placement"), [
    (101, 10_000, "disk"), (100, 260, "device"), (100, 259, "host memory"),
])  # fmt: skip
def test_where_it_fits(monkeypatch, size, free, placement):
    with FakeTensorMode():
        own = torch.empty(30, dtype=torch.uint8, device="cuda")
    weights = LiveWeights(nn.Linear(1, 1))
    weights.resident = {"weight": own}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 20_000))
    assert placement_for(size, weights, 100) == placement
    weights.resident = {"weight": torch.empty(30, dtype=torch.uint8)}
    assert placement_for(size, weights, 100) == ("disk" if size > 100 else "host memory")
