"""Whole models with their weights, or not at all."""

from copy import deepcopy
from typing import Any, TypedDict, cast

import torch
from transformers import PreTrainedModel

from hf_moe_lmc.errors import BadInputError

from .opened_model import OpenedModel


class LoadOptions(TypedDict, total=False):
    """Keywords of `from_pretrained` that say how a model is held in memory."""

    dtype: torch.dtype | str
    device_map: str | dict[str, Any]
    attn_implementation: str
    experts_implementation: str


def load_model(opened: OpenedModel, options: LoadOptions | None = None) -> PreTrainedModel:
    """The model of a checkpoint, or a live model itself, ready for evaluation.

    The checkpoint was checked when it was opened: nothing that it lacks is filled in with random weights.

    Args:
        opened: what `open_model` found.
        options: as for `from_pretrained`; the dtype is that of the checkpoint unless said otherwise.

    Raises:
        BadInputError: a live model is no model of Transformers.
    """
    if opened.source is None:
        if not isinstance(opened.model, PreTrainedModel):
            raise BadInputError(f"a {opened.name} is no model of Transformers")
        return opened.model
    model_class = cast("type[PreTrainedModel]", type(opened.model))
    keywords: dict[str, Any] = {
        "dtype": "auto",
        # Named here, for config.json may ask for a kernel of a repository; that of the skeleton does not.
        "config": deepcopy(opened.model.config),
        "attn_implementation": "sdpa" if model_class._supports_sdpa else "eager",
    }
    keywords.update(options or {})
    loaded = model_class.from_pretrained(opened.source.folder, local_files_only=True, use_safetensors=True, **keywords)
    return loaded.eval()
