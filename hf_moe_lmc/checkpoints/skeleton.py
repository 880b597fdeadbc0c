"""A model without weights, out of its configuration alone."""

from importlib import import_module

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_moe_lmc.errors import BadInputError, UnsupportedArchitectureError


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of `config` on the meta device: every module, shape and dtype, and no memory.

    Its class is the one that `config.architectures` names, looked up beside the configuration's own class: no code
    comes from a repository.

    Raises:
        UnsupportedArchitectureError: the class is not known.
        BadInputError: the class cannot be built from these settings.
    """
    cls = _model_class(config)
    try:
        with torch.device("meta"):
            # The attention is named here, for a configuration may ask for a kernel of a repository.
            return cls._from_config(config, attn_implementation="eager").eval()
    except Exception as error:  # settings come from a file, and may break anything
        reason = " ".join(str(error).split())
        raise BadInputError(f"a {cls.__name__} cannot be built from config.json: {reason}") from None


def _model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    name = next(iter(config.architectures or ()), None)
    if name is None:
        raise BadInputError("config.json names no model class under architectures; add the one that was saved")
    found = getattr(import_module(type(config).__module__.rpartition(".")[0]), name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel) and found.config_class is type(config)):
        raise UnsupportedArchitectureError(
            f"config.json names the model class {name}, which the installed Transformers does not have for model type "
            f"{config.model_type}; remote code is never run"
        )
    return found
