import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model

from hf_moe_lmc.connectivity import LiveWeights, borrow
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
def test_borrowed_weights_are_given_back(name, how, tmp_path):
    other = build(name, seed=1, dtype=torch.float32)
    model = build(name, dtype=torch.float32) if how == "resident" else offloaded(name, how, tmp_path)
    before, wanted = logits(model), logits(other)
    assert not torch.allclose(before, wanted)
    files = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with borrow(model) as weights:
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
        with borrow(model) as weights:
            weights.load(build("mixtral", seed=1, dtype=torch.float32).state_dict())
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    assert torch.equal(logits(model), before)


def test_a_skeleton_has_no_weights():
    with pytest.raises(BadInputError, match="has no data; load the model's weights first"):
        LiveWeights(build("mixtral").to("meta"))
