import math
from itertools import permutations, product

import pytest
import torch

from hf_moe_lmc.adapters import experts_per_token, inspect, moe_layers
from hf_moe_lmc.adapters.inspection import log10_order
from hf_moe_lmc.checkpoints import meta_model, read_config
from hf_moe_lmc.errors import UnsupportedArchitectureError
from hf_moe_lmc.moe import SymmetryGroup
from tests import families, models


@pytest.mark.parametrize("name", families.supported())
def test_a_skeleton_from_config_json_looks_like_the_live_model(name, tmp_path):
    model = families.build(name)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"
    model.config.save_pretrained(tmp_path)
    assert inspect(meta_model(read_config(tmp_path))) == inspect(model)


def chosen_experts(model, name: str) -> dict[str, int]:
    """Name of the experts module -> how many experts its caller names per token, from a forward pass."""
    chosen = {}

    def hook(experts: str):
        def note(module, args, kwargs):
            tables = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor) and not x.is_floating_point()]
            if experts_of_each := [table for table in tables if table.ndim == 2]:
                chosen[experts] = experts_of_each[0].shape[1]

        return note

    for spec in moe_layers(model):
        module = model.get_submodule(spec.experts.name)
        module.register_forward_pre_hook(hook(spec.experts.name), with_kwargs=True)
    families.outputs(model, name)
    return chosen


# Their experts are called otherwise.
OTHER_CALLS = {"dbrx": 3, "doge": 3, "jetmoe": 3, "llama4": 3, "nllb_moe": 2, "switch_transformers": 1}


@pytest.mark.parametrize("name", families.supported())
def test_experts_per_token_are_as_many_as_a_token_is_sent_to(name):
    model = families.build(name)
    said = {spec.experts.name: experts_per_token(model, spec) for spec in moe_layers(model)}
    if name in OTHER_CALLS:
        assert set(said.values()) == {OTHER_CALLS[name]}
    else:
        assert said == chosen_experts(model, name)


def test_a_router_that_does_not_say_is_refused():
    model = models.build("mixtral")
    del model.model.layers[1].mlp.gate.top_k
    del model.model.layers[1].mlp.top_k
    with pytest.raises(
        UnsupportedArchitectureError, match=r"layers\.1\.mlp: a mixtral\.MixtralTopKRouter does not say"
    ):
        inspect(model)


def test_sizes_by_hand():
    """qwen2_moe of tests/models.py: E = 5, F = 7, H = 12, a shared MLP of 9 units; router 5 x 12."""
    layer = inspect(models.build("qwen2_moe", dtype=torch.bfloat16)).layers[2]
    assert layer.name == "model.layers.2.mlp"
    assert (layer.num_experts, layer.num_units, layer.hidden_size, layer.experts_per_token) == (5, 7, 12, 2)
    assert (layer.shared_experts, layer.shared_units) == (1, 9)
    assert layer.parameters == 5 * 12 + 5 * 3 * 7 * 12 + 3 * 9 * 12
    assert layer.bytes == 2 * layer.parameters
    assert layer.symmetries == (
        "experts",
        "units",
        "unit signs",
        "unit scales",
        "shared units",
        "shared unit signs",
        "shared unit scales",
        "router translation",
    )


def test_a_dense_layer_is_one_expert_without_router():
    """The second layer of qwen2_moe of tests/models.py: F = 14, H = 12."""
    layer = inspect(models.build("qwen2_moe", dtype=torch.bfloat16)).layers[1]
    assert (layer.name, layer.router) == ("model.layers.1.mlp", None)
    assert (layer.num_experts, layer.num_units, layer.hidden_size, layer.experts_per_token) == (1, 14, 12, 1)
    assert layer.parameters == 3 * 14 * 12
    assert layer.symmetries == ("units", "unit signs", "unit scales")
    assert math.isclose(10**layer.log10_symmetries, math.factorial(14) * 2**14, rel_tol=1e-9)


def test_what_is_fixed_is_no_symmetry():
    nllb = inspect(families.build("nllb_moe")).layers[1]
    assert nllb.symmetries == ("units", "unit scales", "router translation")
    assert math.isclose(nllb.log10_symmetries, 12 * math.log10(math.factorial(48)), rel_tol=1e-9)
    layers = {layer.name: layer for layer in inspect(families.build("jetmoe")).layers}
    attention, mlp = layers["model.layers.0.self_attention.experts"], layers["model.layers.0.mlp"]
    assert attention.symmetries == ("experts", "router translation")
    assert math.isclose(10**attention.log10_symmetries, math.factorial(12), rel_tol=1e-9)
    assert "units" in mlp.symmetries


def test_a_dense_layer_of_unknown_class_is_named():
    class OwnMLP(torch.nn.Module):
        pass

    model = models.build("qwen2_moe")
    model.model.layers[1].mlp = OwnMLP()
    inspection = inspect(model)
    assert inspection.unaligned == ("model.layers.1.mlp",)
    assert [layer.name for layer in inspection.layers] == ["model.layers.0.mlp", "model.layers.2.mlp"]


def test_symmetries_are_counted_as_by_hand():
    """E = 4 in 2 groups, F = 2 with signs, two shared experts of 3 units without, three zero experts."""
    orders = [p for p in permutations(range(4)) if p[0] // 2 == p[1] // 2]
    units = len(list(product(permutations(range(2)), product((1, -1), repeat=2))))
    expected = len(orders) * units**4 * (2 * 6**2) * 6
    order = log10_order(SymmetryGroup(expert_groups=2, unit_signs=True), 4, 2, (2, 3), 3)
    assert math.isclose(10**order, expected, rel_tol=1e-9)


def test_only_product_keys_have_an_order():
    layer = inspect(families.build("doge", experts=12)).layers[0]
    assert (layer.num_experts, layer.num_units, layer.experts_per_token) == (16, 1, 3)
    assert layer.symmetries == ("keys", "shared units", "shared unit signs", "shared unit scales", "router translation")
    shared = layer.shared_units * math.log10(2) + math.log10(math.factorial(layer.shared_units))
    assert math.isclose(layer.log10_symmetries, math.log10(math.factorial(4)) + shared, rel_tol=1e-9)
