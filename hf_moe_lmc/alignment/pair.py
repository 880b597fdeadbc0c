"""Whether two models can be merged at all, decided before a weight is read."""

import re
from pathlib import Path
from typing import Any

from hf_moe_lmc.checkpoints import Checkpoint
from hf_moe_lmc.checkpoints.json_file import read_json
from hf_moe_lmc.errors import IncompatiblePairError

from .opened_model import OpenedModel

# Configuration fields that do not change what a model computes from its inputs when it is evaluated.
HARMLESS = re.compile(
    r"_name_or_path|name_or_path|transformers_version|architectures|(torch_)?dtype|use_cache|initializer_\w+|init_\w+"
    r"|id2label|label2id|problem_type|finetuning_task|task_specific_params|return_dict|output_\w+|torchscript"
    r"|\w*aux_loss\w*|\w*z_loss\w*|router_jitter_noise|\w*dropout\w*|\w*_pdrop|layerdrop|\w*_drop|gradient_checkpointing"
    r"|(pad|bos|eos|decoder_start|forced_eos|forced_bos|sep|cls|unk)_token_id|_commit_hash|use_return_dict"
    r"|_?(attn|experts)_implementation\w*"
    r"|max_length|min_length|temperature|top_p|do_sample|num_beams"
)
TOKENIZER_NAMES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model")


def check_pair(reference: OpenedModel, other: OpenedModel) -> list[str]:
    """Refuse two models that do not compute the same function of their weights.

    Compared: class, configuration, Mixture-of-Experts layers and their sizes, names and shapes of all tensors, tied
    weights, vocabularies.

    Returns:
        differences that do no harm, in words.

    Raises:
        IncompatiblePairError: naming every difference that does, one to a clause.
    """
    if type(reference.model) is not type(other.model):
        raise IncompatiblePairError(
            f"the reference is a {type(reference.model).__name__}, the other a {type(other.model).__name__}; "
            "give two models of one class"
        )
    harmful, harmless = _configurations(reference, other)
    harmful += _layers(reference, other) + _tensors(reference, other) + _vocabularies(reference, other)
    if harmful:
        raise IncompatiblePairError("; ".join(harmful))
    return harmless


def _configurations(reference: OpenedModel, other: OpenedModel) -> tuple[list[str], list[str]]:
    harmful, harmless = [], []
    a, b = (_flat(getattr(side.model, "config", None)) for side in (reference, other))
    for name in sorted(a.keys() | b.keys()):
        if (value := a.get(name)) != (value_other := b.get(name)):
            difference = f"{name} is {value!r} in the reference, {value_other!r} in the other"
            (harmless if HARMLESS.fullmatch(name.rpartition(".")[2]) else harmful).append(difference)
    return harmful, harmless


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    fields = config.to_dict() if hasattr(config, "to_dict") else config or {}
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        # Names of labels are keyed by number and compared as a whole.
        nested = isinstance(value, dict) and not HARMLESS.fullmatch(name)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _layers(reference: OpenedModel, other: OpenedModel) -> list[str]:
    routed = [{spec.name for spec in side.layers if spec.router} for side in (reference, other)]
    names = routed[0] ^ routed[1]
    return [f"layer {min(names)} is a Mixture of Experts in one of the models only"] if names else []


def _tensors(reference: OpenedModel, other: OpenedModel) -> list[str]:
    a, b = _shapes(reference), _shapes(other)
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            owner = "reference" if name in a else "other"
            return [f"tensor {name} exists in the {owner} model only (tied weights in one of them?)"]
        if a[name] != b[name]:
            return [f"tensor {name} has shape {a[name]} in the reference, {b[name]} in the other"]
    return []


def _shapes(side: OpenedModel) -> dict[str, tuple[int, ...]]:
    tensors = side.tensors.on_meta() if isinstance(side.tensors, Checkpoint) else side.tensors
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _vocabularies(reference: OpenedModel, other: OpenedModel) -> list[str]:
    if reference.source is None or other.source is None:
        return []
    for name in TOKENIZER_NAMES:
        files = [side.source.folder / name for side in (reference, other) if side.source]
        # A model without the file is no evidence of another vocabulary.
        if all(file.is_file() for file in files):
            a, b = map(_vocabulary, files)
            if a != b:
                return [f"{name} differs: the same token has another number or is cut in another way"]
    return []


def _vocabulary(file: Path) -> Any:
    """What of a tokenizer's file decides the numbers of the tokens."""
    if file.name != "tokenizer.json":
        return file.read_bytes()
    values = read_json(file)
    return {key: values.get(key) for key in ("model", "added_tokens", "normalizer", "pre_tokenizer")}
