"""Which fields of two configurations differ, and whether that changes what the models compute."""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, cache_utils, masking_utils, modeling_rope_utils
from transformers.integrations import moe, sdpa_attention
from transformers.modeling_layers import GenericForSequenceClassification

from .difference import Difference

# Fields that are read, and change nothing of what a model computes from its inputs when it is evaluated. Not among
# them, for all their names: NLLB's moe_token_dropout scales in evaluation, output_multiplier scales. What is read and
# not known is taken to matter.
HARMLESS = re.compile(
    r"_name_or_path|name_or_path|_commit_hash|transformers_version|architectures|(torch_)?dtype|trust_remote_code"
    r"|initializer_(range|factor)|init_(std|xavier_std|method)"
    r"|(\w+_)?dropout(_rate|_prob|_p)?|\w+_pdrop|(\w+_)?layerdrop|gradient_checkpointing|(\w+_)?(aux|z)_loss\w*"
    r"|input_jitter_noise|moe_jitter_eps|moe_loss_weight"
    r"|problem_type|finetuning_task|task_specific_params|(use_)?return_dict|torchscript|use_cache"
    r"|output_(attentions|hidden_states|router_logits)|_?(attn|experts)_implementation\w*"
    r"|use_mamba_kernels|use_mambapy|use_associative_scan|num_nextn_predict_layers|num_mtp_layers|mtp_\w+"
    r"|(pad|bos|eos|forced_bos|forced_eos)_token_id"
)
HARMFUL = frozenset({"moe_token_dropout"})
# Found by its token where positions are counted without padding, and where the last token before it is classified.
PADDING = "pad_token_id"
# Noise of training, but in PhiMoE, where it decides between experts.
NOISE, NOISE_DECIDES = "router_jitter_noise", "phimoe"
# Frequencies of these rotary embeddings do not depend on the largest position; no other reader of it computes with it.
LARGEST_POSITION, PLAIN_ROPE = "max_position_embeddings", {"default", "linear", "llama3", "proportional"}
SCALED_ROPE = PLAIN_ROPE | {"yarn", "longrope"}  # if their factor is given
# Two names of one function.
ACTIVATIONS = {"swish": "silu"}
LABELS = "id2label"
SHOWN = 60  # characters of a value

# What reads configurations beside the code of a model.
READERS = (cache_utils, masking_utils, modeling_rope_utils, moe, sdpa_attention)
# Classes of every configuration; and names that code imports which computes rotary embeddings by Transformers' means.
OF_ALL = (PreTrainedConfig, modeling_rope_utils.RotaryEmbeddingConfigMixin)
ROPE = ("ROPE_INIT_FUNCTIONS", "dynamic_rope_update")
LIBRARIES = {*sys.stdlib_module_names, "torch", "transformers"}
OF_FAMILIES = ("transformers.models.", "transformers.modeling_layers")
# Fields that Transformers reads when it makes a model of any class.
READ_ALWAYS = frozenset({"is_decoder", "quantization_config", "num_labels", LABELS})
TIED = "tie_word_embeddings"


def config_differences(reference: nn.Module, other: nn.Module) -> list[Difference]:
    """The differences of the configurations of two models of one class.

    Fields of nested configurations count like others; a field that one of the two lacks differs. A field that no code
    of the model reads changes nothing; one that is read does unless it is known not to.
    """
    a, b = _flat(getattr(reference, "config", None)), _flat(getattr(other, "config", None))
    different = [path for path in sorted(a.keys() | b.keys()) if _meaning(path, a) != _meaning(path, b)]
    read = read_names(reference) if different else None
    padding = isinstance(reference, GenericForSequenceClassification) or bool(a.get("is_encoder_decoder"))
    return [
        Difference(path, _in_words(path, a.get(path), b.get(path)), _changes_function(path, a, b, read, padding))
        for path in different
        if not (_last(path) == LABELS and None in (a.get(path), b.get(path)))
    ]


def read_names(model: nn.Module) -> frozenset[str] | None:
    """All names that the code of a model may read from its configuration; None if some of its source is not known.

    Attributes and strings in the methods of its modules and of its configurations, in the functions that the modules
    name, and in what Transformers reads for every model, of rotary embeddings for those that have them; and what they
    are aliases of. Not among them are fields that only the constructor of a configuration reads, to fill other fields,
    and what only layers of a kind read that the model does not have.
    """
    modules = {cls for module in model.modules() for cls in type(module).__mro__ if _is_own(cls)}
    has_rope = any(hasattr(inspect.getmodule(cls), name) for cls in modules for name in ROPE)
    configs = list(_configurations(getattr(model, "config", None)))
    sources: list[Any] = [
        *(reader for reader in READERS if has_rope or reader is not modeling_rope_utils),
        *(
            function
            for cls in {cls for config in configs for cls in type(config).__mro__ if cls not in OF_ALL}
            for name, function in _functions(cls)
            if not name.startswith(("_", "validate"))
        ),
    ]
    tied = {TIED} if any(getattr(module, "_tied_weights_keys", None) for module in model.modules()) else set()
    try:
        read = READ_ALWAYS.union(tied, *map(_names_in, sources), *map(_read_by, modules))
    except (OSError, TypeError):  # typed by hand, made at run time, or compiled
        return None
    aliases = {real for config in configs for alias, real in type(config).attribute_map.items() if alias in read}
    return read | aliases


@cache
def _read_by(cls: type) -> frozenset[str]:
    """Names in the methods of a class of modules, and in the functions and classes other than modules that they name.

    Attributes of `self` are none of the configuration, and weights are loaded, not initialised.
    """
    waiting, known, read = [cls], set[Any](), set[str]()
    while waiting:
        known.add(value := waiting.pop())
        for name, function in _functions(value):
            read |= _names_in(function, r"(?<!self)[.\"'](\w+)") if name != "_init_weights" else set()
            named = [function.__globals__.get(name) for name in _names_in(function, r"(\w+)")]
            for own in [part for value in named for part in (value.values() if isinstance(value, dict) else [value])]:
                is_code = inspect.isfunction(own) or (inspect.isclass(own) and not issubclass(own, nn.Module))
                waiting += [own] if is_code and _is_own(own) and own not in known else []
    return frozenset(read)


def _is_own(value: Any) -> bool:
    """Whether a class or a function is of a family, or a user's, and of no library."""
    return value.__module__.partition(".")[0] not in LIBRARIES or value.__module__.startswith(OF_FAMILIES)


def _functions(value: Any) -> list[tuple[str, Any]]:
    """The functions of a class by name, without those that dataclasses write; or a function by its own."""
    parts = vars(value) if inspect.isclass(value) else {value.__name__: value}
    functions = {
        name: part.fget if isinstance(part, property) else getattr(part, "__func__", part)
        for name, part in parts.items()
    }
    return [
        (name, inspect.unwrap(function))
        for name, function in functions.items()
        if inspect.isfunction(function) and not (is_dataclass(value) and name.startswith("__"))
    ]


@cache
def _names_in(source: Any, pattern: str = r"[.\"'](\w+)") -> frozenset[str]:
    """Attributes and strings in the source of a module or a function."""
    return frozenset(re.findall(pattern, inspect.getsource(source)))


def _configurations(value: Any) -> Iterator[PreTrainedConfig]:
    if isinstance(value, PreTrainedConfig):
        yield value
        for part in vars(value).values():
            yield from _configurations(part)


def _changes_function(
    path: str, a: Mapping[str, Any], b: Mapping[str, Any], read: frozenset[str] | None, padding: bool
) -> bool:
    prefix, name = path[: -len(_last(path))], _last(path)
    if name in HARMFUL or (name == PADDING and padding):
        return True
    if HARMLESS.fullmatch(name) or (read is not None and name not in read):
        return False
    if name == NOISE:
        return NOISE_DECIDES in (a.get("model_type"), a.get(f"{prefix}model_type"))
    if name == LARGEST_POSITION:
        kinds = re.compile(rf"({re.escape(prefix)}rope_parameters\.(\w+\.)?)rope_type")
        ropes = [(config, found[1]) for config in (a, b) for key in config if (found := kinds.fullmatch(key))]
        return not ropes or any(
            config[f"{rope}rope_type"] not in (PLAIN_ROPE if config.get(f"{rope}factor") is None else SCALED_ROPE)
            for config, rope in ropes
        )
    return True


def _meaning(path: str, flat: Mapping[str, Any]) -> Any:
    value = flat.get(path)
    return ACTIVATIONS.get(value, value) if isinstance(value, str) and "act" in _last(path) else value


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Path of a field -> its value."""
    fields = config.to_dict() if isinstance(config, PreTrainedConfig) else config
    flat: dict[str, Any] = {}
    for name, value in (fields if isinstance(fields, Mapping) else getattr(fields, "__dict__", {})).items():
        if name == LABELS:
            # Without names of labels, Transformers numbers them, which says nothing.
            known = {str(key): label for key, label in (value or {}).items() if label != f"LABEL_{key}"}
            flat |= {f"{prefix}{name}": known} if known else {}
        elif name == "label2id":
            pass  # says the same
        elif isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            # JSON has no tuples.
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _in_words(path: str, a: Any, b: Any) -> str:
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b) > 8:
        place = next(place for place in range(len(a)) if a[place] != b[place])
        return _in_words(f"{path}[{place}]", a[place], b[place])
    return f"{path} is {_shown(a)} in the reference, {_shown(b)} in the other"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
