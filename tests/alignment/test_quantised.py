"""Quantised checkpoints: their experts can be reordered, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import FineGrainedFP8Config, Mxfp4Config, PreTrainedModel

from hf_moe_lmc import align
from hf_moe_lmc.alignment import Alignment, LayerAlignment, apply, merge_checkpoints, open_checkpoint
from hf_moe_lmc.errors import BadInputError, UnsupportedArchitectureError
from tests import families
from tests.checkpoints.faulty import edit_config, edit_tensors

Tensors = dict[str, Tensor]
BLOCK = 8
GROUP = 8  # of GPTQ


def fp8(weight: Tensor) -> Tensors:
    """Blocks of 8 x 8 with a scale each, as DeepSeek publishes them (there, of 128 x 128)."""
    rows, columns = (size // BLOCK for size in weight.shape)
    blocks = weight.reshape(rows, BLOCK, columns, BLOCK)
    scales = blocks.abs().amax(dim=(1, 3)) / 448
    codes = (blocks / scales[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scales}


def gptq(weight: Tensor) -> Tensors:
    """4 bits with a scale for 8 inputs: eight inputs in one int32 of `qweight`, eight outputs in one of `qzeros`."""
    groups = weight.T.unflatten(0, (-1, GROUP))  # [G, 8, out]
    scales = groups.abs().amax(dim=1) / 7
    codes = (groups / scales[:, None] + 8).round().clamp(0, 15).to(torch.int32)
    shifts = 4 * torch.arange(8, dtype=torch.int32)
    zeros = torch.full((len(scales), weight.shape[0] // 8, 8), 7, dtype=torch.int32)
    return {
        "qweight": (codes << shifts[:, None]).sum(dim=1, dtype=torch.int32),
        "qzeros": (zeros << shifts).sum(dim=2, dtype=torch.int32),
        "scales": scales.half(),
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }
