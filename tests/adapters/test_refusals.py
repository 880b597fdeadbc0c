"""What would be aligned or merged silently wrong is refused by name."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.integrations.finegrained_fp8 import FP8Experts, FP8Linear
from transformers.integrations.mxfp4 import Mxfp4GptOssExperts

from hf_moe_lmc.adapters import moe_layers
from hf_moe_lmc.errors import UnsupportedArchitectureError
from tests import families
from tests.models import MODELS


def quantised(linear: nn.Linear) -> FP8Linear:
    return FP8Linear(linear.in_features, linear.out_features, block_size=(8, 8), has_bias=False)


@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_experts_as_transformers_quantises_them(kind):
    model = families.build("mixtral" if kind == "fp8" else "gpt_oss")
    block, config = model.model.layers[1].mlp, model.config
    block.experts = FP8Experts(config, block_size=(8, 8)) if kind == "fp8" else Mxfp4GptOssExperts(config)
    message = r"tensor model\.layers\.1\.mlp\.experts\..*_proj.* a quantised model must be dequantised first: load"
    with pytest.raises(UnsupportedArchitectureError, match=message):
        moe_layers(model)


LINEARS = {  # family -> a linear of its experts, one by one; of shared experts; of a dense layer
    "switch_transformers": "encoder.block.1.layer.1.mlp.experts.expert_3.wo",
    "qwen2_moe": "model.layers.1.mlp.shared_expert.up_proj",
    "deepseek_v3": "model.layers.0.mlp.gate_proj",
}


@pytest.mark.parametrize("family", LINEARS)
def test_linears_as_transformers_quantises_them(family):
    model, name = families.build(family), LINEARS[family]
    model.set_submodule(name, quantised(model.get_submodule(name)))
    with pytest.raises(UnsupportedArchitectureError, match=rf"tensor {name}\.weight.* must be dequantised first"):
        moe_layers(model)


@pytest.mark.parametrize("family", LINEARS)
def test_packed_linears(family):
    """As of bitsandbytes, whose weights are bytes, and of GPTQ, which has no weight."""
    model, name = families.build(family), LINEARS[family]
    model.get_submodule(name).weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UnsupportedArchitectureError, match=rf"tensor {name}\.weight is torch\.uint8; a quantised"):
        moe_layers(model)
    model, packed = families.build(family), nn.Module()
    packed.register_buffer("qweight", torch.zeros(4, 8, dtype=torch.int32))
    model.set_submodule(name, packed)
    with pytest.raises(UnsupportedArchitectureError, match=rf"tensor {name}\.qweight is not known; a quantised"):
        moe_layers(model)


TENSORS = {"dbrx": "experts.mlp.w1", "jetmoe": "input_linear.weight", "inkling": "shared_experts.up_proj"}


@pytest.mark.parametrize("family", TENSORS)
def test_packed_tensors(family):
    model = families.build(family)
    name = next(name for name, _ in model.named_parameters() if name.endswith(TENSORS[family]))
    owner, _, own = name.rpartition(".")
    tensor = model.get_parameter(name).detach().to(torch.float8_e4m3fn)
    setattr(model.get_submodule(owner), own, nn.Parameter(tensor, requires_grad=False))
    with pytest.raises(UnsupportedArchitectureError, match=rf"tensor {name} is torch\.float8_e4m3fn; a quantised"):
        moe_layers(model)


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
