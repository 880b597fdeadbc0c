import doctest
from copy import deepcopy

import pytest
import torch
from torch import nn

from hf_moe_lmc import align, register_adapter, scramble
from hf_moe_lmc.adapters import families, moe_layers
from hf_moe_lmc.errors import UnsupportedArchitectureError


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


def test_the_example_of_the_docstring():
    (example,) = doctest.DocTestFinder(recurse=False).find(register_adapter, "register_adapter")
    assert len(example.examples) > 10
    assert doctest.DocTestRunner().run(example).failed == 0


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
        assert spec.read(model.state_dict()).symmetry_shape == (6, 5, None)
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
