"""Whole models with their weights, or not at all."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import hf_moe_lmc.modeling  # noqa: F401  (makes our own model types known to Transformers)
from hf_moe_lmc.checkpoints import Checkpoint, find_source, meta_model, read_config


def load_model(name: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a folder or of a repository on the Hub, with "eager" attention and experts.

    Its checkpoint is checked first, as for an alignment; its tokenizer lies in `name_or_path`.

    Raises:
        BadInputError: the checkpoint is damaged or incomplete.
        UnsupportedArchitectureError: it is not known here.
        HubError: the Hub does not give it.
    """
    folder = find_source(name).folder
    skeleton = meta_model(read_config(folder))
    Checkpoint.open(folder, skeleton)  # refuses what from_pretrained would fill with random weights
    cls: Any = type(skeleton)
    model = cls.from_pretrained(
        folder,
        config=skeleton.config,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        attn_implementation="eager",
    )
    model.set_experts_implementation("eager")  # the others reject float64 on a CPU
    return model.eval()
