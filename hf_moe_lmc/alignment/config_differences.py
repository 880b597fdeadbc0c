"""Which fields of two configurations differ, and whether that changes what the models compute."""

import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

# Fields that change nothing of what a model computes from its inputs when it is evaluated. Not among them, for all
# their names: NLLB's moe_token_dropout scales in evaluation, PhiMoE's router_jitter_noise decides between experts,
# output_multiplier scales. What is not known is taken to matter.
HARMLESS = re.compile(
    r"_name_or_path|name_or_path|_commit_hash|transformers_version|architectures|(torch_)?dtype"
    r"|initializer_(range|factor)|init_(std|xavier_std|method)"
    r"|(\w+_)?dropout(_rate|_prob|_p)?|\w+_pdrop|(\w+_)?layerdrop|gradient_checkpointing|(\w+_)?(aux|z)_loss\w*"
    r"|problem_type|finetuning_task|task_specific_params|(use_)?return_dict|torchscript|use_cache"
    r"|output_(attentions|hidden_states|router_logits)|_?(attn|experts)_implementation\w*"
    r"|(pad|bos|eos|forced_bos|forced_eos)_token_id"
)
HARMFUL = frozenset({"moe_token_dropout"})
# An encoder-decoder counts positions from the first token that is no padding.
POSITIONS = "pad_token_id"
LABELS = "id2label"
SHOWN = 60  # characters of a value


def config_differences(
    reference: PreTrainedConfig | Mapping[str, Any], other: PreTrainedConfig | Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """The differences that change what a model computes, and those that do not, in words.

    Fields of nested configurations count like others; a field that one of the two lacks differs.
    """
    a, b = _flat(reference), _flat(other)
    positions = bool(a.get("is_encoder_decoder"))
    harmful, harmless = [], []
    for path in sorted(a.keys() | b.keys()):
        if (value := a.get(path)) != (value_other := b.get(path)):
            name = path.rpartition(".")[2]
            if name == LABELS and None in (value, value_other):
                continue
            may_differ = HARMLESS.fullmatch(name) and name not in HARMFUL and not (positions and name == POSITIONS)
            (harmless if may_differ else harmful).append(_difference(path, value, value_other))
    return harmful, harmless


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    fields = config.to_dict() if isinstance(config, PreTrainedConfig) else config
    flat: dict[str, Any] = {}
    for name, value in fields.items():
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


def _difference(path: str, a: Any, b: Any) -> str:
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b) > 8:
        place = next(place for place in range(len(a)) if a[place] != b[place])
        return _difference(f"{path}[{place}]", a[place], b[place])
    return f"{path} is {_shown(a)} in the reference, {_shown(b)} in the other"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
