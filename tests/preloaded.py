"""What the server of `tests.forked` imports before it forks."""

import os

os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import accelerate  # noqa: F401
import torch
from transformers import MixtralForCausalLM  # noqa: F401

import hf_moe_lmc.alignment
import hf_moe_lmc.cli  # noqa: F401

torch.set_num_threads(1)
