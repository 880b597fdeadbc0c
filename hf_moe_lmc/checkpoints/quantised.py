"""Weights written in block-wise fp8, as DeepSeek-V3 and Qwen3-FP8 are stored: codes, and a scale for each block.

Which weights, and how each is rounded, is decided by Transformers: what it reads as fp8 is what is written as fp8.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import FineGrainedFP8Config, PreTrainedModel
from transformers.integrations.finegrained_fp8 import Fp8Quantize, replace_with_fp8_linear
from transformers.quantizers.base import get_keys_to_not_convert

from hf_moe_lmc.errors import UnsupportedArchitectureError

from .conversion import TensorGroup, tensor_groups

CODES, SCALE, BLOCK = torch.float8_e4m3fn, "_scale_inv", 128
WEIGHT = torch.bfloat16  # of what is quantised, as of what is read


def quantised(weights: Mapping[str, Tensor], keys: Container[str]) -> dict[str, Tensor]:
    """`weights`, those of `keys` as codes, with the scales of their blocks of 128 x 128 under `<key>_scale_inv`.

    A scale is `max |w| / 448` over the block, in float32, a code `w / scale` rounded to float8_e4m3fn. Weights are
    rounded to bfloat16 first, so that the largest of a block is read as what it was, and quantising what was read
    changes no bit.
    """
    rule: Any = Fp8Quantize(SimpleNamespace(quantization_config=FineGrainedFP8Config()))
    tensors: dict[str, Tensor] = {}
    for key, weight in weights.items():
        tensors |= rule.convert({key: weight.to(WEIGHT)}) if key in keys else {key: weight}
    return tensors


def quantisable(model: PreTrainedModel, stored: Mapping[str, Tensor], kept: Iterable[str]) -> set[str]:
    """Keys of the weights that Transformers reads as fp8, of linears and experts, if blocks cut none of their sides.

    Args:
        model: a skeleton.
        stored: checkpoint key -> tensor on the meta device.
        kept: module names of weights that stay as they are, such as those of routers.

    Raises:
        UnsupportedArchitectureError: Transformers has no fp8 for the experts of this model, or not as they are stored.
    """
    groups, weights = tensor_groups(model, stored)[0], model.state_dict()
    cut = {name for group in groups if any(_is_cut(key, stored[key]) for key in group.keys) for name in group.names}
    skipped = {_module(name) for name in {*kept, *cut}}
    skipped |= {*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())}
    copy = deepcopy(model)
    try:
        replace_with_fp8_linear(copy, sorted(skipped), FineGrainedFP8Config())
    except (AssertionError, AttributeError) as error:
        raise _unsupported(model, str(error)) from None
    read = copy.state_dict()
    for name, weight in weights.items():
        if name not in read or read[name].shape != weight.shape:
            raise _unsupported(model, f"{name} has another place or shape there")
    keys = {key for group in groups if all(f"{name}{SCALE}" in read for name in group.names) for key in group.keys}
    if not keys:
        raise _unsupported(model, f"no weight has sides that {BLOCK} divides")
    if stacked := [key for key in stored if key in keys and stored[key].ndim > 2]:
        reason = f"of {stacked[0]}, which holds several experts, it loses the scales where it dequantises"
        raise _unsupported(model, f"{reason}; where it saves experts one by one, --layout original does")
    return keys


def quantisation_settings(
    model: PreTrainedModel, groups: Sequence[TensorGroup], keys: Container[str], ignored: Iterable[str]
) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint of `model` whose weights of `keys` are fp8.

    Matrices that Transformers ignores, and others may read, such as those of layers that predict further tokens, are
    `ignored`.
    """
    converted = {_module(name) for group in groups if group.keys[0] in keys for name in group.names}
    modules = (name for name, part in model.named_modules() if isinstance(part, nn.Linear) or name.endswith(".experts"))
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": [*(name for name in modules if name not in converted), *map(_module, ignored)],
    }


def _is_cut(key: str, tensor: Tensor) -> bool:
    """Whether blocks cut a side of a matrix; biases, of which experts have one each, are none."""
    return tensor.ndim > 1 and not key.endswith("bias") and any(size % BLOCK for size in tensor.shape[-2:])


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _unsupported(model: PreTrainedModel, reason: str) -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(
        f"Transformers does not read a {type(model).__name__} of these sizes as block-wise fp8: {reason}; write it "
        "without --quantise, and quantise it with llm-compressor"
    )
