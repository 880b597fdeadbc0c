"""Whether fields of config.json are refused exactly where outputs change: every field of every family, one at a time.

python -m benchmarks.config_fields [family ...]

A tiny model of the family gets another value in one field, or some that a model could have, and the same weights. Its
outputs in evaluation, for short, long and padded inputs and from a cache, are compared with those before; beside this
stands whether the pair check calls the difference harmful. Values with which the class makes no model, or one of other
tensors, are left out; such pairs are refused for their tensors. Fields that are refused and change nothing are tried
again in other models of the family: deeper, with larger heads, with sliding windows, with groups of experts.

Exits with 1 if a field is not refused that changes an output. Without families, all of them, into
benchmarks/results/config_fields.md.
"""

import argparse
import copy
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_moe_lmc.alignment.config_differences import config_differences
from tests import families

from .report import FOLDER

Path = tuple[str, ...]

# Of what class the model is, which is compared elsewhere, and in what form outputs come.
NOT_TRIED = {"id2label", "label2id", "model_type", "transformers_version", "return_dict"}
WORDS = (
    ("silu", "gelu", "relu"),
    ("softmax", "sigmoid"),
    ("greedy", "group_limited_greedy", "noaux_tc"),
    ("full_attention", "sliding_attention", "chunked_attention", "linear_attention"),
    ("default", "linear", "dynamic", "yarn", "llama3"),
)
TEXT = ("input_ids", "inputs_embeds")
LONG, PADDED = 80, 3  # tokens

# Of further models, in which more code is at work.
HEADS: dict[str, object] = dict.fromkeys(["head_dim", "global_head_dim", "swa_head_dim", "kv_channels"], 16)
FURTHER: tuple[dict[str, object], ...] = (
    HEADS | {"num_hidden_layers": 5, "mlp_layer_types": ["dense"] + 4 * ["sparse"], "qk_rope_head_dim": 8},
    HEADS | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "use_sliding_window": True},
    HEADS | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    {"topk_method": "group_limited_greedy"},
)

# Fields that are refused and changed nothing -> why no output shows what their code does.
REASONS = {
    r"num_key_value_heads": "latent attention has a key for every head: SDPA does not ask for their number, other "
    "attention repeats keys by it; in Inkling, of a kind of layers that the models lack",
    r"tie_word_embeddings": "here both places hold the same weights; in two models they may not",
    r"\w*rope_\w+|partial_rotary_factor|mrope_section|beta_\w+|type|llama_4_\w+": "rotary embeddings of small heads "
    "have few frequencies, and belong to kinds of layers that a few layers lack",
    r"num_attention_heads|(v_)?head_dim|rel_extent|expand|\w+_dim": "sizes of parts that the model lacks, or that "
    "other fields give where they are given",
    r"\w*(_types|_layers|_step|_end_index|pattern|sliding_window|wide_mlp|kpool|attention)": "kinds of layers, and "
    "what such layers read: the values tried choose the same kinds, or the model has none",
    r"max_\w+|model_max_length|attn_\w+|log_scaling_\w+": "read with positions, beyond the lengths tried",
    r".*": "read in a branch that nothing here takes: generation, initial values, padding, capacity, rounding",
}


@dataclass
class FamilyFields:
    """The paths of the fields of one family, by what was found.

    Args:
        family: of `tests.families`.
        accepted: not refused, and no value changes an output.
        refused: refused, and some value changes an output.
        unseen: not refused, though an output changes.
        needless: refused, though no output changes.
        incomparable: no value makes a model of the same tensors.
    """

    family: str
    accepted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    needless: list[str] = field(default_factory=list)
    incomparable: list[str] = field(default_factory=list)


def check(family: str, only: frozenset[str] | None = None) -> FamilyFields:
    """Try every field of a family, or only those of these names, first in its own model, then in further ones.

    Raises:
        AssertionError: outputs change though no field does.
    """
    result = _check_in(families.build(family), family, only)
    for sizes in FURTHER:
        if not result.needless:
            break
        with suppress(Exception):  # it makes no model of the family, each class in its own way
            model = families.build(family, sizes=sizes)
            again = _check_in(model, family, frozenset(path.rpartition(".")[2] for path in result.needless))
            decided = [path for path in result.needless if path in again.refused]
            result.needless = [path for path in result.needless if path not in decided]
            result.refused += decided
            result.unseen += again.unseen
    return result


def _check_in(model: PreTrainedModel, family: str, only: frozenset[str] | None) -> FamilyFields:
    fields, batches = model.config.to_dict(), inputs(model, family)
    expected = _outputs(_with_fields(model, fields), batches)
    assert _equal(expected, _outputs(model, batches)), f"{family}: a copy has other outputs"
    result = FamilyFields(family)
    for path in leaves(fields):
        if NOT_TRIED.isdisjoint(path) and (only is None or not only.isdisjoint(path)):
            refused, changed = _tried(model, path, fields, batches, expected)
            kinds = {
                (False, False): result.accepted,
                (False, True): result.unseen,
                (True, False): result.needless,
                (True, True): result.refused,
            }
            kinds.get((refused, changed), result.incomparable).append(".".join(path))
    return result


def _tried(
    model: PreTrainedModel, path: Path, fields: Mapping[str, Any], batches: Any, expected: Any
) -> tuple[bool | None, bool | None]:
    """Whether values of a field are refused, and whether they change outputs; None where no value makes a model."""
    tried = set[tuple[bool, bool]]()
    for value in other_values(_at(fields, path)):
        changed_fields = copy.deepcopy(dict(fields))
        _at(changed_fields, path[:-1])[path[-1]] = value
        try:
            other = _with_fields(model, changed_fields)
            changed = not _equal(_outputs(other, batches), expected)
        except Exception:  # by the configuration, the model or its weights, each in its own way
            continue
        differences = config_differences(model, other)
        tried.add((any(difference.harmful for difference in differences), changed))
    if (False, True) in tried:
        return False, True
    if not tried:
        return None, None
    return any(refused for refused, _ in tried), any(changed for _, changed in tried)


def other_values(value: Any) -> list[Any]:
    """Other values that a field could have."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value + 1, 2]
    if isinstance(value, float):
        return [value / 2 + 0.3, 2 * value + 1]
    if isinstance(value, str):
        return [word for words in WORDS if value in words for word in words if word != value] or [f"{value}?"]
    if isinstance(value, list | tuple):
        others = [[*value[:-1], other] for other in other_values(value[-1])] if value else [[1]]
        return [*others, *([[*reversed(value)]] if value != [*reversed(value)] else [])]
    return [2, 0.5, True] if value is None else [1]


def leaves(fields: Mapping[str, Any], path: Path = ()) -> Iterator[Path]:
    """Paths to all values that are no dictionaries."""
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name)


def inputs(model: PreTrainedModel, family: str) -> list[dict[str, Tensor]]:
    """Batches: that of the family, and of text also one with padding on the left and a longer one."""
    batch, generator = families.inputs(model, family), torch.Generator().manual_seed(2)
    if not (name := next((name for name in TEXT if name in batch), None)):
        return [batch]
    mask = torch.ones(batch[name].shape[:2], dtype=torch.long)
    mask[0, :PADDED] = 0
    padded = {**batch, "attention_mask": mask}
    if name == "input_ids":
        padded[name] = batch[name].masked_fill(mask == 0, 0)
    places = torch.randint(mask.shape[1], (LONG,), generator=generator)
    return [batch, padded, {name: tensor[:, places] for name, tensor in batch.items()}]


@torch.no_grad()
def _outputs(model: PreTrainedModel, batches: list[dict[str, Tensor]]) -> list[Tensor | None]:
    """The outputs for every batch; None for one that the model does not take."""
    outputs: list[Tensor | None] = [families.output(model, batches[0]).nan_to_num()]
    computed = [partial(families.output, model, batch) for batch in batches[1:]]
    for compute in [*computed, partial(_last_output, model, batches[-1])]:
        try:
            outputs.append(compute().nan_to_num())
        except Exception:  # too long for its positions, no text, no cache, each in its own way
            outputs.append(None)
    return outputs


def _last_output(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """The output for the last token of a long text, from the cache of those before."""
    (name, text) = next((name, batch[name]) for name in TEXT if name in batch)
    cache = model(**{name: text[:, :-1]}, use_cache=True).past_key_values
    return families.output(model, {name: text[:, -1:], "past_key_values": cache, "use_cache": True})


def _equal(a: list[Tensor | None], b: list[Tensor | None]) -> bool:
    """Outputs for batches that both models take."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in pairs)


def _with_fields(model: PreTrainedModel, fields: Mapping[str, Any]) -> PreTrainedModel:
    """A model of these fields and the weights of `model`."""
    other = type(model)(type(model.config).from_dict(copy.deepcopy(dict(fields)))).eval()
    for module in other.modules():
        if hasattr(module, "config"):
            module.config._experts_implementation = "eager"
    other.load_state_dict(model.state_dict())
    return other


def _at(fields: Any, path: Path) -> Any:
    for name in path:
        fields = fields[name]
    return fields


def table(results: Sequence[FamilyFields]) -> str:
    """One row for each family, and the sums."""
    kinds = ("accepted", "refused", "unseen", "needless", "incomparable")
    counts = {kind: [len(getattr(result, kind)) for result in results] for kind in kinds}
    sums = {kind: sum(numbers) for kind, numbers in counts.items()}
    head = (
        f"`python -m benchmarks.config_fields`, Transformers {version('transformers')}: {len(results)} families.\n"
        f"No value changes an output: {sums['accepted']} fields are accepted, {sums['needless']} refused.\n"
        f"Some value changes one: {sums['refused']} are refused, {sums['unseen']} accepted.\n"
        f"No other value makes a model of the same tensors: {sums['incomparable']}."
    )
    lines = [
        f"| {result.family} | {' | '.join(str(counts[kind][place]) for kind in kinds[:3])} | "
        f"{', '.join(result.needless)} | {counts['incomparable'][place]} |"
        for place, result in enumerate(results)
    ]
    titles = "| family | accepted, same | refused, changed | accepted, changed | refused, same | other tensors |"
    needless = [path.rpartition(".")[2] for result in results for path in result.needless]
    owners = [next(pattern for pattern in REASONS if re.fullmatch(pattern, name)) for name in needless]
    reasons = ["", "| refused, same | fields | why |", "| --- | ---: | --- |"]
    for pattern, reason in REASONS.items():
        names = sorted({name for name, owner in zip(needless, owners, strict=True) if owner == pattern})
        if names:
            reasons.append(f"| {', '.join(names)} | {owners.count(pattern)} | {reason} |")
    return "\n".join([head, "", titles, "| --- | ---: | ---: | ---: | --- | ---: |", *lines, *reasons]) + "\n"


def main() -> int:
    """Try the families, and print or renew the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", choices=[*families.supported(), []], metavar="family")
    chosen = parser.parse_args().families
    results = [check(family) for family in chosen or families.supported()]
    if not chosen:
        (FOLDER / "config_fields.md").write_text(table(results), encoding="utf-8")
    sys.stdout.write(table(results))
    return any(result.unseen for result in results)


if __name__ == "__main__":
    sys.exit(main())
