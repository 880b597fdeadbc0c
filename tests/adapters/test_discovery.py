import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from hf_moe_lmc.adapters import alignable_layers, moe_layers, unaligned_layers
from hf_moe_lmc.errors import BadInputError, UnsupportedArchitectureError
from tests import families
from tests.models import MODELS, build

EXPECTED = {  # dense layers among them in brackets
    "moe_vit dense": ["vit.layers.0.mlp", "(vit.layers.1.mlp)", "vit.layers.2.mlp"],
    "moe_vit sparse": ["vit.layers.0.mlp", "(vit.layers.1.mlp)", "vit.layers.2.mlp"],
    "moe_vit shared": ["vit.layers.0.mlp", "(vit.layers.1.mlp)", "vit.layers.2.mlp"],
    "moe_gpt2 sparse": ["(transformer.h.0.mlp)", "transformer.h.1.mlp"],
    "moe_gpt2 shared": ["(transformer.h.0.mlp)", "transformer.h.1.mlp"],
    "mixtral": ["model.layers.0.mlp", "model.layers.1.mlp"],
    "qwen2_moe": ["model.layers.0.mlp", "(model.layers.1.mlp)", "model.layers.2.mlp"],
}
SHAPES = {
    "moe_vit shared": (5, 7, (1, 7), 0),
    "moe_gpt2 shared": (5, 7, (1, 7), 0),
    "qwen2_moe": (5, 7, (1, 9), 0),
}
DENSE_UNITS = {"moe_gpt2 sparse": 48, "moe_gpt2 shared": 48}


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_found_and_read(name):
    model = build(name)
    specs = alignable_layers(model)
    assert [spec.name if spec.router else f"({spec.name})" for spec in specs] == EXPECTED[name]
    assert unaligned_layers(model) == ()
    for spec in specs:
        expected = SHAPES.get(name, (5, 7, None, 0)) if spec.router else (1, DENSE_UNITS.get(name, 14), None, 0)
        assert spec.read(model.state_dict()).symmetry_shape == expected


@pytest.mark.parametrize("name", MODELS)
def test_write_is_the_inverse_of_read(name):
    """And together they name every tensor of the block but the shared expert's own gate."""
    tensors = build(name).state_dict()
    for spec in alignable_layers(build(name)):
        written = spec.write(spec.read(tensors), tensors)
        assert all(torch.equal(tensors[key], tensor) for key, tensor in written.items())
        own = {key for key in tensors if key.startswith(f"{spec.name}.")}
        assert own - written.keys() <= {f"{spec.name}.shared_expert_gate.weight"}


# One family for each layout of experts, of shared experts and of routers.
LAYOUTS = [
    "mixtral",
    "gpt_oss",
    "nemotron_h",
    "dbrx",
    "jetmoe",
    "switch_transformers",
    "inkling",
    "granitemoeshared",
    "minimax_m3_vl",
    "deepseek_v3",
    "deepseek_v4",
    "gemma4",
    "vitpose_backbone",
    "doge",
]


@pytest.mark.parametrize("family", LAYOUTS)
def test_tensor_names_are_all_that_a_layer_reads_and_writes(family):
    model = families.build(family)
    tensors = model.state_dict()
    for spec in alignable_layers(model):
        own = {name: tensors[name] for name in spec.tensor_names}
        assert len(own) == len(spec.tensor_names)
        assert spec.write(spec.read(own), own).keys() == own.keys()
        for name in own:
            with pytest.raises(BadInputError, match=f"tensor {re.escape(name)} is missing"):
                spec.read({key: tensor for key, tensor in own.items() if key != name})


@pytest.mark.parametrize("name", MODELS)
def test_a_skeleton_without_weights_will_do(name):
    with torch.device("meta"):
        skeleton = MODELS[name]()
    assert alignable_layers(skeleton) == alignable_layers(build(name))


def test_an_unknown_router_is_refused_by_name():
    class OwnRouter(torch.nn.Module):
        pass

    model = MODELS["mixtral"]()
    model.model.layers[1].mlp.gate = OwnRouter()
    with pytest.raises(UnsupportedArchitectureError, match=r"router model\.layers\.1\.mlp\.gate: a .*OwnRouter"):
        alignable_layers(model)


def test_a_router_tensor_of_unknown_role_is_refused():
    model = MODELS["mixtral"]()
    model.model.layers[0].mlp.gate.register_parameter("temperature", torch.nn.Parameter(torch.ones(5)))
    with pytest.raises(UnsupportedArchitectureError, match="tensor temperature is not known"):
        alignable_layers(model)


def test_an_unknown_dense_layer_is_named(caplog):
    """It stays as it is, and all others are aligned."""

    class OwnMLP(torch.nn.Sequential):
        pass

    model = MODELS["qwen2_moe"]()
    model.model.layers[1].mlp = OwnMLP(torch.nn.Linear(12, 14), torch.nn.Linear(14, 12))
    assert unaligned_layers(model) == ("model.layers.1.mlp",)
    assert [spec.name for spec in alignable_layers(model)] == ["model.layers.0.mlp", "model.layers.2.mlp"]
    assert "Qwen2MoeForCausalLM: no symmetry is known of model.layers.1.mlp" in caplog.text


def test_dense_layers_are_no_mixtures():
    model = MODELS["qwen2_moe"]()
    assert [spec.name for spec in moe_layers(model)] == ["model.layers.0.mlp", "model.layers.2.mlp"]


def test_experts_of_unknown_layout_are_refused():
    """Rather than not seen."""
    model = MODELS["mixtral"]()
    model.model.layers[1].mlp.experts = torch.nn.ModuleList(torch.nn.Linear(12, 12) for _ in range(5))
    with pytest.raises(UnsupportedArchitectureError, match=r"layers\.1\.mlp\.experts: the layout of .*ModuleList"):
        moe_layers(model)


def test_a_dense_model_is_refused():
    with torch.device("meta"), pytest.raises(UnsupportedArchitectureError, match="GPT2LMHeadModel has no"):
        alignable_layers(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2)))


def test_a_missing_tensor_is_named():
    model = build("mixtral")
    tensors = model.state_dict()
    del tensors["model.layers.1.mlp.gate.weight"]
    with pytest.raises(BadInputError, match=r"tensor model\.layers\.1\.mlp\.gate\.weight is missing"):
        alignable_layers(model)[1].read(tensors)


LORA = {
    "experts": {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    "router": {"target_parameters": ["mlp.gate.weight"]},
    "shared experts": {"target_modules": ["shared_expert.up_proj"]},
    "dense layers": {"target_modules": ["layers.1.mlp.down_proj"]},
    "attention": {"target_modules": ["q_proj"]},
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, about Transformers
@pytest.mark.parametrize("where", LORA)
def test_an_adapter_that_is_not_merged(where):
    """Its own weights would stay behind, or be merged with the other model's; merged, the model is as any other."""
    model = get_peft_model(MODELS["qwen2_moe"](), LoraConfig(r=2, **LORA[where]))
    with pytest.raises(UnsupportedArchitectureError, match=r"a PEFT .*merge the adapter first"):
        moe_layers(model)
    assert len(moe_layers(model.merge_and_unload())) == 2


def test_experts_tied_between_layers():
    """As one module, or as modules of the same parameters: one order of experts cannot suit two routers."""
    model = MODELS["mixtral"]()
    first, second = (layer.mlp for layer in model.model.layers)
    second.experts.down_proj = first.experts.down_proj
    message = r"tensor model\.layers\.0\.mlp\.experts\.\w+ is tied to model\.layers\.1\.mlp\.experts\.\w+; .* untie"
    with pytest.raises(UnsupportedArchitectureError, match=message):
        moe_layers(model)
    second.experts = first.experts
    with pytest.raises(UnsupportedArchitectureError, match=message):
        moe_layers(model)


def test_one_expert_in_two_slots():
    """As one module, or as modules of the same parameters; as modules, a list shows it once."""
    model = families.build("switch_transformers")
    experts = model.encoder.block[1].layer[1].mlp.experts
    experts["expert_2"].wi.weight = experts["expert_0"].wi.weight
    message = r"tensor encoder.*expert_0\.wi\.weight is tied to encoder.*expert_2\.wi\.weight; .* untie"
    with pytest.raises(UnsupportedArchitectureError, match=message):
        moe_layers(model)
    experts["expert_2"] = experts["expert_0"]
    with pytest.raises(UnsupportedArchitectureError, match=message):
        moe_layers(model)
