"""Every family, and the whole multimodal models around them, on disk and back."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from hf_moe_lmc import align, apply, scramble
from hf_moe_lmc.alignment.opened_model import open_checkpoint
from tests import families, multimodal
from tests.battery import ROUNDED

Outputs = Callable[[PreTrainedModel], Tensor]

# How a checkpoint may have been saved.
SHARDED = {"max_shard_size": "100KB"}
FUSED = {"save_original_format": False}


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and torch.equal(bits(a[key]), bits(b[key])) for key in a
    )


def stored(folder: Path) -> dict[str, Tensor]:
    return {key: tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()}


def check_reading(model: PreTrainedModel, folder: Path) -> None:
    """Every tensor, under its module name, is the live model's; and back again it is what is stored."""
    checkpoint = open_checkpoint(folder).checkpoint
    live = model.state_dict()
    for name in checkpoint:
        assert torch.equal(bits(checkpoint[name]), bits(live[name])), name
    for group in checkpoint.groups:
        for key, tensor in group.to_stored({name: live[name] for name in group.names}).items():
            entry = checkpoint.stored[key]
            assert tensor.shape == entry.shape, key
            assert torch.equal(bits(tensor), bits(entry.read())), key


def load(model_class: type[PreTrainedModel], folder: Path) -> PreTrainedModel:
    model, report = model_class.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def check_writing(model_class: type[PreTrainedModel], original: Path, outputs: Outputs) -> None:
    """Rewritten on disk, a checkpoint is what the live model is, rewritten; aligned to the original, the original."""
    rewritten, back = original.with_name("rewritten"), original.with_name("back")
    model = load(model_class, original)
    before = outputs(deepcopy(model))  # Switch Transformers casts its routers when it runs
    model, planted = scramble(model)
    apply(planted, original, rewritten)
    loaded = load(model_class, rewritten)
    assert same(loaded.state_dict(), model.state_dict())
    if loaded.dtype == torch.float32:
        assert float((outputs(loaded) - before).abs().max() / before.abs().max()) < ROUNDED
    found = align(original, rewritten)
    assert found.symmetries == planted.inverse().symmetries
    apply(found, rewritten, back)
    assert same(stored(back), stored(original))


def check(model: PreTrainedModel, folder: Path, outputs: Outputs) -> None:
    """In float32 shards, rewritten; in bfloat16 under module names in one file, read."""
    model.save_pretrained(folder / "sharded", **SHARDED)
    check_reading(model, folder / "sharded")
    check_writing(type(model), folder / "sharded", outputs)
    model.to(torch.bfloat16).save_pretrained(folder / "fused", **FUSED)
    check_reading(model, folder / "fused")


@pytest.mark.parametrize("family", families.supported())
def test_a_family(family, tmp_path):
    check(families.build(family), tmp_path, lambda model: families.outputs(model, family))


@pytest.mark.parametrize("family", sorted({*families.HOLDERS} & {*families.supported()}))
def test_bfloat16_under_module_names_is_rewritten(family, tmp_path):
    model = families.build(family, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "fused", **FUSED)
    check_writing(type(model), tmp_path / "fused", lambda model: families.outputs(model, family))


@pytest.mark.filterwarnings("ignore:Casting complex values:UserWarning")  # Llama 4's rotary embedding in bfloat16
@pytest.mark.parametrize("name", multimodal.supported())
def test_a_whole_multimodal_model(name, tmp_path):
    check(multimodal.build(name), tmp_path, multimodal.outputs)
