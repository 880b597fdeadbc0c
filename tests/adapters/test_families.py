import importlib
import re
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING

from hf_moe_lmc import MoeAligner, align, cli, merge, register_adapter, scramble, verify
from hf_moe_lmc.adapters import families, inspect, moe_layers
from hf_moe_lmc.errors import BadInputError, UnsupportedArchitectureError


@pytest.fixture(autouse=True)
def forget():
    """Leave no trace of what a test registers."""
    before = dict(families.KNOWN)
    yield
    families.KNOWN.clear()
    families.KNOWN.update(before)


class OwnRouter(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.n_group, self.topk_group = nn.Parameter(torch.randn(6, 8)), 3, 1


class OwnMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 5), nn.Linear(8, 5), nn.Linear(5, 8)


class OwnExperts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Parameter(torch.randn(6, 10, 8)), nn.Parameter(torch.randn(6, 8, 5))


class OwnModel(nn.Module):
    def __init__(self, experts: nn.Module):
        super().__init__()
        self.block = nn.ModuleDict({"router": OwnRouter(), "experts": experts})


def listed() -> OwnModel:
    return OwnModel(nn.ModuleList(OwnMLP() for _ in range(6)))


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The module of docs/adding-a-family.md, not yet imported, and the code that checks it."""
    text = (Path(__file__).parents[2] / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
    module, check = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    file = tmp_path / "my_moe.py"
    file.write_text(module, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield file, check
    del sys.modules["my_moe"]
    CONFIG_MAPPING._extra_content.pop("my_moe", None)


def test_the_page_about_code_of_your_own(page):
    exec(page[1], {})
    my_moe = importlib.import_module("my_moe")
    (layer,) = inspect(my_moe.MyModel(my_moe.MyConfig())).layers
    assert (layer.num_experts, layer.num_units, layer.experts_per_token) == (6, 8, 2)
    assert layer.symmetries == ("experts", "units", "unit signs", "router translation")


def test_the_page_on_the_command_line(page, tmp_path, capsys, monkeypatch):
    """Saved, opened, merged, loaded and verified, of a class in a top-level module."""
    monkeypatch.chdir(tmp_path)
    my_moe, folders = importlib.import_module("my_moe"), ["a", "b"]
    torch.manual_seed(0)
    models = [my_moe.MyModel(my_moe.MyConfig()) for _ in folders]
    models[1].load_state_dict(models[0].state_dict())
    scramble(models[1])
    for model, folder in zip(models, folders, strict=True):
        model.save_pretrained(folder)
    line = (
        (Path(__file__).parents[2] / "docs" / "adding-a-family.md").read_text().split("hf-moe-lmc ")[1].splitlines()[0]
    )
    del sys.modules["my_moe"]
    CONFIG_MAPPING._extra_content.pop("my_moe")
    words = [*line.replace("my-a my-b", "a b").split(), "--import", "no_such_module"]
    assert cli.main(words[:-2][:-2]) == 3
    assert "does not know model_type 'my_moe'; of code of your own, import the module" in capsys.readouterr().err
    assert cli.main(words) == 3
    assert "the module no_such_module cannot be imported" in capsys.readouterr().err
    assert cli.main(words[:-2]) == 0
    assert cli.main(["verify", "a", "my-merge"]) == 0
    merged = MoeAligner.from_pretrained("a", "my-merge").merge("none", t=1)
    assert type(merged).__name__ == "MyModel"
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], tensor)


def test_a_plain_module(page):
    my_moe = importlib.import_module("my_moe")
    block = nn.Sequential(my_moe.MyBlock(my_moe.MyConfig()))
    before, (batch,) = deepcopy(block), torch.randn(1, 4, 7, 16)
    scramble(block)
    verification = verify(before, block, {"random": [{"input": batch}]})
    assert verification.equal
    with torch.no_grad():
        block[0].gate.weight.mul_(1.1)
    assert not verify(before, block, {"random": [{"input": batch}]}).equal
    assert align(before, block).layers
    with pytest.raises(
        BadInputError, match="Sequential is no model of Transformers, no inputs are known; give batches"
    ):
        verify(before, block)
    with pytest.raises(BadInputError, match="Sequential is no model of Transformers"):
        merge(before, block)


def test_its_check_finds_a_false_statement(page):
    """That a gate with an offset is odd."""
    file, check = page
    file.write_text(file.read_text(encoding="utf-8").replace("up.clamp(-7, 7)", "(up + 1)"), encoding="utf-8")
    with pytest.raises(AssertionError):
        exec(check, {})


def test_tensors_and_rows_of_a_router_that_belong_to_no_expert():
    model, router = listed(), OwnRouter()
    router.weight, router.temperature = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.ones(1))
    model.block["router"] = router
    stated = {"scores": "softmax", "mlps": {OwnMLP: "gated"}}
    register_adapter(OwnRouter, **stated)
    with pytest.raises(
        UnsupportedArchitectureError, match=r"tensor temperature is not known; see hf_moe_lmc\.register"
    ):
        moe_layers(model)
    stated["common_tensors"] = ("temperature",)
    register_adapter(OwnRouter, **stated)
    with pytest.raises(UnsupportedArchitectureError, match=r"8 rows for 6 experts; see hf_moe_lmc\.register_adapter"):
        moe_layers(model)
    register_adapter(OwnRouter, **stated, further_rows="zero experts")
    (spec,) = moe_layers(model)
    assert spec.read(model.state_dict()).symmetry_shape[-1] == 2
    assert not spec.group.router_translation


def test_what_is_not_registered_is_refused_by_name():
    with pytest.raises(UnsupportedArchitectureError, match=r"nor the MLP .*OwnMLP; see hf_moe_lmc\.register_adapter"):
        moe_layers(listed())
    with pytest.raises(UnsupportedArchitectureError, match=r"a .*OwnExperts, whose gate .* hf_moe_lmc\.register_ad"):
        moe_layers(OwnModel(OwnExperts()))
    register_adapter(OwnRouter, "softmax", mlps={OwnMLP: "gated"})
    assert len(moe_layers(listed())) == 1


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("gate", ["gated", "odd", "offset"])
def test_what_is_said_becomes_the_group(scores, gate):
    register_adapter(OwnRouter, scores, {OwnExperts: gate}, {OwnMLP: gate}, expert_groups="n_group")
    for model in (listed(), OwnModel(OwnExperts())):
        (spec,) = moe_layers(model)
        assert spec.name == "block"
        assert spec.read(model.state_dict()).symmetry_shape == (6, 5, None, 0)
        group = spec.group
        assert group.router_translation == (scores == "softmax")
        assert not group.selection_bias_constant
        assert group.unit_signs == (gate != "offset")
        assert group.unit_scale_degree == (gate == "gated")
        assert group.expert_groups == 3


def test_listed_experts_are_permuted_as_modules():
    register_adapter(OwnRouter, "softmax", mlps={OwnMLP: "offset"})
    model = listed()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, alignment = scramble(model)
    order = alignment.symmetries["block"].experts.index.tolist()
    for slot, expert in enumerate(order):
        bias = model.state_dict()[f"block.experts.{slot}.down_proj.bias"]
        assert torch.equal(bias, before[f"block.experts.{expert}.down_proj.bias"])


@pytest.mark.parametrize("experts", ["listed", "fused"])
def test_a_planted_rewrite_is_found(experts):
    register_adapter(OwnRouter, "sigmoid", {OwnExperts: "odd"}, {OwnMLP: "odd"}, expert_groups="n_group")
    reference = listed() if experts == "listed" else OwnModel(OwnExperts())
    other, planted = scramble(deepcopy(reference))
    alignment = align(reference, other)
    assert alignment.symmetries == planted.inverse().symmetries
    other = alignment.apply(other).state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in reference.state_dict().items())
