"""Checkpoint keys <-> module names, by Transformers' own conversion mapping.

On disk most families store one tensor per expert, in memory one per layer. Only this file knows the functions of
Transformers that translate; they are not exported at its top level, and a test round-trips every family.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from hf_moe_lmc.errors import BadInputError

from .dequantised import REMEDY

Tensors = Mapping[str, Tensor]

# The projection that joins embedding and hidden state tells a layer that predicts further tokens from a decoder layer.
FURTHER_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.eh_proj\.")

# Parts of keys that a training run wraps around those of the model -> where they come from, and what to do.
WRAPPERS = {
    "_orig_mod.": "torch.compile; save the model that was compiled (model._orig_mod.save_pretrained)",
    "_fsdp_wrapped_module.": "FSDP; save its full state dict (accelerator.save_model, or merge-weights)",
    "_checkpoint_wrapped_module.": "activation checkpointing; save the model without its wrapper",
    "base_model.model.": "PEFT; save the model with its adapter merged (model.merge_and_unload().save_pretrained)",
    "pretrained_model.": "TRL; save the model inside (model.pretrained_model.save_pretrained)",
    "module.": "DistributedDataParallel or DeepSpeed; save the model inside (model.module.save_pretrained)",
    "v_head.": "a value head of TRL; save the model without it (model.pretrained_model.save_pretrained)",
    "_extra_state": "Transformer Engine, and no weight; save the checkpoint without it",
}


class MisfitError(BadInputError):
    """A stored tensor is not one of the model's, `key` is its name in the checkpoint."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}{message}")
        self.key = key


@dataclass(frozen=True)
class TensorGroup:
    """The smallest set of tensors that is translated as a whole: most often one tensor, or the experts of one layer.

    Args:
        keys: in the checkpoint.
        names: under module names.
        conversion: between the two; None if a single tensor is only renamed.
    """

    keys: tuple[str, ...]
    names: tuple[str, ...]
    conversion: "Conversion | None" = field(default=None, repr=False)

    def to_module(self, stored: Tensors) -> dict[str, Tensor]:
        """Tensors under checkpoint keys -> tensors under module names."""
        return self.conversion.to_module(stored) if self.conversion else {self.names[0]: stored[self.keys[0]]}

    def to_stored(self, tensors: Tensors) -> dict[str, Tensor]:
        """The inverse of `to_module`; views of `tensors` where only slicing and transposing are needed."""
        own = {name: tensors[name] for name in self.names}
        return self.conversion.to_stored(own) if self.conversion else {self.keys[0]: own[self.names[0]]}


@dataclass(frozen=True)
class Conversion:
    """One converter of Transformers, bound to the tensors of one group.

    Args:
        converter: its rule.
        name: the module name under which Transformers files the group.
        seen: checkpoint key -> the key after renaming, which is what the rule speaks of.
        patterns: checkpoint key -> the rule's pattern that it matched.
        model: a skeleton; rules ask it for shapes.
    """

    converter: WeightConverter
    name: str
    seen: dict[str, str]
    patterns: dict[str, str]
    model: PreTrainedModel = field(repr=False)

    def to_module(self, stored: Tensors) -> dict[str, Tensor]:
        """Tensors under checkpoint keys -> tensors under module names."""
        converter: Any = deepcopy(self.converter)
        for key, pattern in self.patterns.items():
            converter.add_tensor(self.name, key, pattern, stored[key])
        return self._run(converter, self.name)

    def to_stored(self, tensors: Tensors) -> dict[str, Tensor]:
        """Tensors under module names -> tensors under checkpoint keys; views where no data need move."""
        converter: Any = self.converter.reverse_transform()
        first = ""
        for name, tensor in tensors.items():
            first, pattern = rename_source_key(name, [], [converter])
            converter.add_tensor(first, name, pattern, tensor)
        with _WithoutCopies():
            stored = self._run(converter, first)
        # A checkpoint of the bare model lacks the prefix of one with a head, or the other way round.
        prefix = f"{self.model.base_model_prefix}."
        names = {alias: name for name in stored for alias in (prefix + name, name.removeprefix(prefix), name)}
        return {key: stored[names[seen]] for key, seen in self.seen.items()}

    def _run(self, converter: Any, name: str) -> dict[str, Tensor]:
        tensors = converter.convert(name, model=self.model, config=self.model.config)
        return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in tensors.items()}


class _WithoutCopies(TorchFunctionMode):
    """Leaves strided views as they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is torch.Tensor.contiguous else func(*args, **(kwargs or {}))


def tied_names(model: PreTrainedModel) -> dict[str, set[str]]:
    """Module name of each tensor that shares its values -> names of the tensors that share them, itself included."""
    tied = model.all_tied_weights_keys
    return {
        name: {source, *(target for target, known in tied.items() if known == source)}
        for target, source in tied.items()
        for name in (target, source)
    }


def tensor_groups(model: PreTrainedModel, stored: Tensors) -> tuple[list[TensorGroup], list[str]]:
    """Plan, without data, how the tensors of a checkpoint make up those of a model.

    Args:
        model: a skeleton on the meta device.
        stored: checkpoint key -> tensor on the meta device.

    Returns:
        the groups, in natural order of their keys; and those keys that are no part of the model and that Transformers
        ignores, such as layers that predict further tokens: groups of their own, under their keys.

    Raises:
        BadInputError: a tensor is missing, is not part of the model, or has another shape than the model's.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    expected, prefix = model.state_dict(), model.base_model_prefix
    groups: dict[str, TensorGroup] = {}
    conversions: dict[str, Conversion] = {}
    unexpected = []
    # Transformers sorts likewise, and some of its renamings depend on the order.
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, expected)
        if name not in expected and key in expected:
            name, pattern = rename_source_key(key, [], [], prefix, expected)
        if name not in expected:
            unexpected.append(key)
        elif pattern is None:
            if name in groups:
                raise MisfitError(key, f" and {groups[name].keys[0]} are both the model's {name}; remove one")
            groups[name] = TensorGroup((key,), (name,))
        else:
            conversion = conversions.setdefault(name, Conversion(by_pattern[pattern], name, {}, {}, model))
            conversion.seen[key], conversion.patterns[key] = rename_source_key(key, renamings, [])[0], pattern
    for name, conversion in conversions.items():
        group = _converted(conversion, stored, expected)
        if twice := [known for known in group.names if known in groups]:
            raise MisfitError(twice[0], f" is in the checkpoint, and {group.keys[0]} is a part of it; remove one")
        groups[name] = group
    _check_wrapped(unexpected)
    _check_shapes(groups.values(), stored, expected)
    _check_dtypes(groups.values(), stored, expected)
    _check_complete(model, {name for group in groups.values() for name in group.names})
    _check_unexpected(model, unexpected)
    groups |= {key: TensorGroup((key,), (key,)) for key in unexpected}
    order = {key: position for position, key in enumerate(sorted(stored, key=dot_natural_key))}
    return sorted(groups.values(), key=lambda group: order[group.keys[0]]), unexpected


def _converted(conversion: Conversion, stored: Tensors, expected: Tensors) -> TensorGroup:
    keys, name = tuple(conversion.seen), conversion.name
    try:
        tensors = conversion.to_module(stored)
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())
        odd = _odd_one_out(conversion, stored)
        raise MisfitError(
            odd,
            f" of shape {tuple(stored[odd].shape)} and what goes with it do not make up the model's {name}: {reason}",
        ) from None
    names = tuple(tensors)
    for name, tensor in tensors.items():
        if name not in expected or tensor.shape != expected[name].shape:
            wanted = tuple(expected[name].shape) if name in expected else "no such tensor"
            raise MisfitError(
                keys[0],
                f" and what goes with it give {name} the shape {tuple(tensor.shape)}; config.json makes it {wanted}",
            )
    back = conversion.to_stored(tensors)
    if any(back[key].shape != stored[key].shape for key in keys):
        # A rule that transposes only if the shapes ask for it, and here they did not.
        return TensorGroup(keys, names)
    return TensorGroup(keys, names, conversion)


def _odd_one_out(conversion: Conversion, stored: Tensors) -> str:
    """The key whose shape is the rarest among those of its pattern."""
    shapes = Counter((pattern, stored[key].shape) for key, pattern in conversion.patterns.items())
    return min(conversion.patterns, key=lambda key: shapes[conversion.patterns[key], stored[key].shape])


def _check_shapes(groups: Iterable[TensorGroup], stored: Tensors, expected: Tensors) -> None:
    for group in groups:
        if group.conversion is None and stored[group.keys[0]].shape != expected[group.names[0]].shape:
            shape, wanted = stored[group.keys[0]].shape, expected[group.names[0]].shape
            raise MisfitError(group.keys[0], f" has shape {tuple(shape)}; config.json makes it {tuple(wanted)}")


def _check_dtypes(groups: Iterable[TensorGroup], stored: Tensors, expected: Tensors) -> None:
    for group in groups:
        wanted = expected[group.names[0]].dtype.is_floating_point
        for key in group.keys:
            dtype = stored[key].dtype
            if dtype.is_complex or dtype.is_floating_point != wanted or (wanted and dtype.itemsize < 2):
                raise MisfitError(key, f" holds {dtype}, as quantised weights do; {REMEDY}")


def _check_complete(model: PreTrainedModel, present: set[str]) -> None:
    tied = tied_names(model)
    optional = model._keys_to_ignore_on_load_missing or ()
    for name in model.state_dict():
        absent = present.isdisjoint({name} | tied.get(name, set()))
        if absent and not any(re.search(pattern, name) for pattern in optional):
            raise BadInputError(f"{name} is missing; download or save the model again")


def _check_wrapped(unexpected: list[str]) -> None:
    for key in unexpected:
        for part, cure in WRAPPERS.items():
            if f".{part}" in f".{key}":
                raise MisfitError(key, f": {part} is of {cure}")


def _check_unexpected(model: PreTrainedModel, unexpected: list[str]) -> None:
    # Layers that predict further tokens are numbered on from the decoder layers, or stand beside them: of numbers,
    # Transformers knows that of a published model.
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    numbers = {int(match[1]) for key in unexpected if (match := FURTHER_LAYER.search(key))}
    further = [re.compile(rf"(^|\.)layers\.{number}\.") for number in numbers if number >= layers]
    for key in unexpected:
        if not is_ignored(model, key) and not any(pattern.search(key) for pattern in further):
            raise MisfitError(key, f" is not part of a {type(model).__name__}; give its own config.json")


def is_ignored(model: nn.Module, key: str) -> bool:
    """Whether Transformers ignores a tensor of a checkpoint, as that of a layer that predicts further tokens."""
    # Old checkpoints hold buffers that models compute by now.
    known = {r"rotary_emb\.inv_freq", r"(^|\.)position_ids$", r"(^|\.)mtp(_\w+)?\."}
    own = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, key) for pattern in {*known, *own})


def saved_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of `model` that `save_pretrained` writes, under module names, on the meta device.

    Of tied tensors they hold one.
    """
    ignored = set(model._keys_to_ignore_on_save or ())
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in ignored}
    return {name: t.to("meta") for name, t in remove_tied_weights_from_state_dict(tensors, model).items()}


def original_tensors(model: PreTrainedModel, tensors: Tensors) -> dict[str, Tensor]:
    """`tensors` of `model`, under module names, as `save_pretrained` would write them: under checkpoint keys."""
    return revert_weight_conversion(model, dict(tensors))
