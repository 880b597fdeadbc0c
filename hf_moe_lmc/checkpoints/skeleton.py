"""config.json, checked before Transformers sees it, and the model without weights that it describes."""

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from hf_moe_lmc.errors import BadInputError, UnsupportedArchitectureError

from .shards import advice
from .small_files import read_json

CONFIG_NAME = "config.json"

# The first that has a class for a configuration; one of several modalities has the text model's class too.
AUTO_CLASSES = (
    AutoModelForImageTextToText,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForImageClassification,
)

# Fields that name code or kernels to load: a checkpoint does not decide what runs here.
DROPPED = re.compile(r"_.*_internal|_?attn_implementation|_?experts_implementation|auto_map|custom_pipelines")

SIZE = re.compile(r"(.*_)?(size|dim|rank|layers|heads|experts|depth|blocks)|(n|num)_.*")
LARGEST_SIZE = 100_000_000
# Ends of the names of fields -> the most that is built from them: modules, and names of classes.
MOST = {("layers", "n_layer", "depth", "blocks", "experts"): 10_000, ("labels",): 100_000}
MOST_EXPERTS, FEW_EXPERTS = 1_000_000, 1000  # in all layers: more are not built, fewer always are
LEAST_BYTES = 16  # of the weights of an expert

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of the checkpoint in `folder`; code that it names is never run.

    Raises:
        BadInputError: it is missing, is no configuration of a model, or has impossible sizes.
        UnsupportedArchitectureError: Transformers does not know its model type.
    """
    path = folder / CONFIG_NAME
    if not path.exists():
        raise BadInputError(f"{path} is missing; {advice(folder)}")
    values = without_code(_with_floats(read_json(path)))
    _check_sizes(values, path)
    names = values.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise BadInputError(f"{path}: architectures is {names!r}; expected a list with the name of one class")
    model_type = values.pop("model_type", None)
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise UnsupportedArchitectureError(
            f"{path}: the installed Transformers does not know model_type {model_type!r}; of code of your own, import "
            "the module that registers it (--import MODULE), see docs/adding-a-family.md"
        )
    try:
        config = CONFIG_MAPPING[model_type].from_dict(values)
    except Exception as error:  # every family checks its own fields, each with another kind of error
        raise BadInputError(f"{path} is no configuration of a {model_type}: {' '.join(str(error).split())}") from None
    values = config.to_dict()
    _check_chosen(values, path)
    _check_experts(values, path)
    return config


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of `config` on the meta device: every module, shape and dtype, and no memory.

    Its class is the one that `config.architectures` names, looked up beside the configuration's own class, or else that
    of Transformers for the model type: no code comes from a repository.

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
        unknown = "no value known there is " if isinstance(error, KeyError) else ""
        reason = unknown + " ".join(str(error).split())
        raise BadInputError(f"a {cls.__name__} cannot be built from config.json: {reason}") from None


def quantisation(config: PreTrainedConfig) -> dict[str, Any] | None:
    """What `config`, or that of its text model, says of how weights are quantised, the `quant_method` at least."""
    for part in (config, config.get_text_config()):
        if settings := getattr(part, "quantization_config", None):
            return {"quant_method": None} | settings
    return None


def drop_quantisation(config: PreTrainedConfig) -> None:
    """Take from a configuration what it says of the quantisation of weights."""
    for part in (config, config.get_text_config()):
        if getattr(part, "quantization_config", None):
            del part.quantization_config


def _with_floats(value: Any) -> Any:
    """`value` with infinities, which Transformers writes as `{"__float__": "Infinity"}`."""
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
        return float(value["__float__"])
    return {k: _with_floats(v) for k, v in value.items()}


def without_code(value: Any) -> Any:
    """Settings without the fields that name code or kernels, here and in nested settings."""
    if isinstance(value, list):
        return [without_code(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: without_code(item) for key, item in value.items() if not DROPPED.fullmatch(key)}


def _check_sizes(values: dict[str, Any], path: Path) -> None:
    """Sizes are within reason, here and in nested configurations."""
    for key, value in values.items():
        if isinstance(value, dict):
            _check_sizes(value, path)
        elif isinstance(value, int) and not isinstance(value, bool) and SIZE.fullmatch(key):
            limit = next((most for ends, most in MOST.items() if key.endswith(ends)), LARGEST_SIZE)
            if not 0 <= value <= limit:
                raise BadInputError(f"{path}: {key} is {value}; expected 0 to {limit}")


def _check_experts(values: Mapping[Any, Any], path: Path) -> None:
    """Experts are no more than can be built, and than the weights beside the file could hold, if there are any."""
    experts, layers = (
        max((value for key in keys if isinstance(value := values.get(key), int)), default=1)
        for keys in (EXPERTS, ("num_hidden_layers", "n_layer", "num_layers"))
    )
    nbytes = sum(file.stat().st_size for file in path.parent.glob("*.safetensors") if file.is_file())
    limit = min(MOST_EXPERTS, max(nbytes // LEAST_BYTES, FEW_EXPERTS)) if nbytes else MOST_EXPERTS
    if experts * layers > limit:
        raise BadInputError(
            f"{path} describes {layers} layers of {experts} experts; expected at most {limit} experts in all, for "
            f"{nbytes} bytes of weights"
        )
    for value in values.values():
        if isinstance(value, dict):
            _check_experts(value, path)


def _check_chosen(values: Mapping[Any, Any], path: Path) -> None:
    """Each token goes to at least one expert and to no more than there are, in nested configurations too."""
    experts = max((value for key in EXPERTS if isinstance(value := values.get(key), int)), default=0)
    for key in CHOSEN:
        chosen = values.get(key)
        if experts > 1 and isinstance(chosen, int) and not 1 <= chosen <= experts:
            raise BadInputError(f"{path}: {key} is {chosen}; expected 1 to {experts}, the number of experts")
    for value in values.values():
        if isinstance(value, dict):
            _check_chosen(value, path)


def _model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    names = config.architectures or []
    if not names:
        if cls := _class_by_type(config, ""):
            return cls
        raise UnsupportedArchitectureError(
            f"config.json names no model class under architectures, and Transformers has none for {config.model_type}; "
            "add the one that was saved"
        )
    # Of a model that is wrapped for training, Transformers saves the name of the wrapped class.
    name = names[0].removeprefix("FSDP")
    module = type(config).__module__
    # In Transformers the two are siblings; code of one's own may be one module.
    places = (import_module(place) for place in (module.rpartition(".")[0], module) if place)
    cls = next((getattr(place, name) for place in places if hasattr(place, name)), None)
    if isinstance(cls, type) and issubclass(cls, PreTrainedModel) and cls.config_class is type(config):
        return cls
    head = "".join(name.rpartition("For")[1:])
    # A name that nobody here has, such as that of the authors' own code; that of another model contradicts model_type.
    known = _class_by_type(config, head) if head != name and not hasattr(transformers, name) else None
    if known:
        return known
    raise UnsupportedArchitectureError(
        f"config.json names the model class {name}, which the installed Transformers does not have for model type "
        f"{config.model_type}; remote code is never run"
    )


def _class_by_type(config: PreTrainedConfig, head: str) -> type[PreTrainedModel] | None:
    """The class that Transformers has for a model type, whose name ends in `head`."""
    for auto in AUTO_CLASSES:
        cls = auto._model_mapping.get(type(config), None)
        cls = cls[0] if isinstance(cls, tuple) else cls
        if cls and cls.__name__.endswith(head) and cls.config_class is type(config):
            return cls
    return None
