"""Quantised weights are refused by name: aligned or merged, they would be silently wrong."""

import pytest
import torch
from torch import nn
from transformers.integrations.finegrained_fp8 import FP8Experts, FP8Linear
from transformers.integrations.mxfp4 import Mxfp4GptOssExperts

from hf_moe_lmc.adapters import moe_layers
from hf_moe_lmc.errors import UnsupportedArchitectureError
from tests import families


def quantised(linear: nn.Linear) -> FP8Linear:
    return FP8Linear(linear.in_features, linear.out_features, block_size=(8, 8), has_bias=False)


@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_experts_as_transformers_quantises_them(kind):
    model = families.build("mixtral" if kind == "fp8" else "gpt_oss")
    block, config = model.model.layers[1].mlp, model.config
    block.experts = FP8Experts(config, block_size=(8, 8)) if kind == "fp8" else Mxfp4GptOssExperts(config)
    message = r"tensor model\.layers\.1\.mlp\.experts\..*_proj.* a live model must hold plain weights: give"
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
    with pytest.raises(UnsupportedArchitectureError, match=rf"tensor {name}\.weight.* a live model must hold plain"):
        moe_layers(model)


@pytest.mark.parametrize("family", LINEARS)
def test_packed_linears(family):
    """As of bitsandbytes, whose weights are bytes, and of GPTQ, which has no weight."""
    model, name = families.build(family), LINEARS[family]
    model.get_submodule(name).weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UnsupportedArchitectureError, match=rf"tensor {name}\.weight is torch\.uint8; a live model"):
        moe_layers(model)
    model, packed = families.build(family), nn.Module()
    packed.register_buffer("qweight", torch.zeros(4, 8, dtype=torch.int32))
    model.set_submodule(name, packed)
    with pytest.raises(UnsupportedArchitectureError, match=rf"tensor {name}\.qweight is not known; a live model"):
        moe_layers(model)


TENSORS = {"dbrx": "experts.mlp.w1", "jetmoe": "input_linear.weight", "inkling": "shared_experts.up_proj"}


@pytest.mark.parametrize("family", TENSORS)
def test_packed_tensors(family):
    model = families.build(family)
    name = next(name for name, _ in model.named_parameters() if name.endswith(TENSORS[family]))
    owner, _, own = name.rpartition(".")
    tensor = model.get_parameter(name).detach().to(torch.float8_e4m3fn)
    setattr(model.get_submodule(owner), own, nn.Parameter(tensor, requires_grad=False))
    with pytest.raises(UnsupportedArchitectureError, match=rf"tensor {name} is torch\.float8_e4m3fn; a live model"):
        moe_layers(model)
