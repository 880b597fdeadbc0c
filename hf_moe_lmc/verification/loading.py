"""Models to be compared, in one dtype and with the plainest arithmetic."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from hf_moe_lmc.alignment import load_model, open_checkpoint


def load_plainly(name: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a folder or of a repository on the Hub, with "eager" attention and experts.

    Its checkpoint is checked first, as for an alignment; its tokenizer lies in `name_or_path`.

    Raises:
        BadInputError: the checkpoint is damaged or incomplete.
        UnsupportedArchitectureError: it is not known here.
        HubError: the Hub does not give it.
    """
    model = load_model(open_checkpoint(name), {"dtype": dtype, "attn_implementation": "eager"})
    model.set_experts_implementation("eager")  # the others reject float64 on a CPU
    return model
