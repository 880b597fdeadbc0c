"""Whether models can be aligned and merged at all, decided before a weight is read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_moe_lmc.checkpoints import Checkpoint, HubOptions, tied_names
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError
from hf_moe_lmc.names import Vocabulary

from .config_differences import config_differences
from .difference import Difference
from .file_differences import file_differences
from .opened_model import Model, OpenedModel, open_model

MOST_NAMED = 6  # differences in one message
VOCABULARY = "vocab_size"

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class CheckedModels:
    """Two models or more of one class, with the same layers and tensors; made by `check_models`.

    Args:
        models: the reference, and those that get aligned to it.
        differences: of their configurations, files and tensors.
        vocabulary: names of the tensors with a row for every token, where the models have other numbers of tokens.
    """

    models: tuple[OpenedModel, ...]
    differences: tuple[Difference, ...] = ()
    vocabulary: tuple[str, ...] = ()

    @property
    def reference(self) -> OpenedModel:
        """The first model."""
        return self.models[0]

    @property
    def others(self) -> tuple[OpenedModel, ...]:
        """All models but the first."""
        return self.models[1:]

    @property
    def texts(self) -> tuple[str, ...]:
        """All differences, in words."""
        return tuple(difference.text for difference in self.differences)

    @property
    def harmful(self) -> tuple[Difference, ...]:
        """The differences that a merge refuses."""
        return tuple(difference for difference in self.differences if difference.harmful)

    def check_mergeable(self, allowed: Sequence[str] = (), vocabulary: Vocabulary | None = None) -> list[Difference]:
        """Refuse models that do not compute the same function of their weights and inputs.

        Args:
            allowed: names of fields and files that may differ all the same, or of what they are part of.
            vocabulary: tokens of the result, where the numbers of tokens differ.

        Returns:
            the differences that only `allowed` lets pass.

        Raises:
            IncompatiblePairError: naming the harmful differences, one to a clause.
        """
        refused = [
            difference
            for difference in self.harmful
            if not (vocabulary if difference.name == VOCABULARY else difference.is_named(allowed))
        ]
        if not refused:
            return [difference for difference in self.harmful if difference.name != VOCABULARY]
        texts = [difference.text for difference in refused[:MOST_NAMED]]
        texts += [f"and {len(refused) - MOST_NAMED} more"] if len(refused) > MOST_NAMED else []
        if names := [difference.name for difference in refused if difference.name != VOCABULARY]:
            texts.append(f"if you know that it does no harm, allow it: --allow-difference {names[0]}")
        if len(names) < len(refused):
            texts.append(
                "where one vocabulary extends the other, merge with --vocabulary common or union; else use "
                "resize_token_embeddings of Transformers, or the tokenizer options of mergekit, first"
            )
        raise IncompatiblePairError("; ".join(texts))


def open_models(models: Sequence[Model], options: HubOptions | None = None) -> CheckedModels:
    """Open two models or more (see `open_model`), and check them.

    Raises:
        BadInputError: fewer than two are given, or one cannot be used.
        IncompatiblePairError: as `check_models`.
    """
    if len(models) < 2:
        raise BadInputError(f"{len(models)} model given; give two or more")
    return check_models([open_model(model, options) for model in models])


def check_models(models: Sequence[OpenedModel]) -> CheckedModels:
    """Compare every model with the first: class, layers, tensors, tied weights, configuration, tokenizer, files.

    A warning says if two are one checkpoint.

    Raises:
        IncompatiblePairError: they are of two classes, or layers or tensors differ.
        BadInputError: a file beside a checkpoint is damaged.
    """
    models = [_with_common(model, models) for model in models]
    reference, *others = models
    vocabulary = tuple(dict.fromkeys(name for other in others for name in _vocabulary(reference, other)))
    differences = [difference for other in others for difference in _differences(reference, other, vocabulary)]
    return CheckedModels(tuple(models), tuple(dict.fromkeys(differences)), vocabulary)


def _with_common(model: OpenedModel, models: Sequence[OpenedModel]) -> OpenedModel:
    """`model` with those further layers that all of `models` store alike."""
    common = (layer for layer in model.further_layers if all(layer in other.further_layers for other in models))
    return replace(model, further_layers=tuple(common))


def _differences(reference: OpenedModel, other: OpenedModel, vocabulary: Sequence[str]) -> list[Difference]:
    if type(reference.model) is not type(other.model):
        raise IncompatiblePairError(
            f"the reference is a {type(reference.model).__name__}, the other a {type(other.model).__name__}; "
            "give two models of one class"
        )
    differences = config_differences(reference.model, other.model)
    if structure := _layers(reference, other) + _tensors(reference, other, vocabulary):
        harmful = [difference.text for difference in differences if difference.harmful]
        raise IncompatiblePairError("; ".join([*harmful[:MOST_NAMED], *structure]))
    if own := [name for name in vocabulary if reference.on_meta[name].shape != other.on_meta[name].shape]:
        differences = [difference for difference in differences if not difference.name.endswith(VOCABULARY)]
        rows, rows_other = (len(side.on_meta[own[0]]) for side in (reference, other))
        text = f"{own[0]} has {rows} rows in the reference, {rows_other} in the other"
        differences.append(Difference(VOCABULARY, text, harmful=True))
    differences += _dtypes(reference, other) + _carried(reference, other)
    if reference.source and other.source:
        differences += file_differences(reference.source.folder, other.source.folder)
        if reference.source.folder.resolve() == other.source.folder.resolve():
            differences.append(Difference(reference.name, "both are the same checkpoint"))
            logger.warning_once(f"{reference.name} and {other.name} are the same checkpoint")
    return differences


def _vocabulary(reference: OpenedModel, other: OpenedModel) -> list[str]:
    """Names of the tensors with one row for every token of each model, if they have other numbers of tokens."""
    sides = [(side.on_meta, _tokens(side)) for side in (reference, other)]
    (a, rows), (b, rows_other) = sides
    if None in (rows, rows_other) or rows == rows_other:
        return []
    return [
        name
        for name in a
        if name in b
        and (a[name].shape[:1], b[name].shape[:1]) == ((rows,), (rows_other,))
        and a[name].shape[1:] == b[name].shape[1:]
    ]


def _tokens(side: OpenedModel) -> int | None:
    """Rows of the embedding of tokens, if there is one."""
    try:
        embedding = side.model.get_input_embeddings() if isinstance(side.model, PreTrainedModel) else None
    except (AttributeError, NotImplementedError):  # a model of images
        return None
    return len(embedding.weight) if isinstance(embedding, nn.Embedding) else None


def _layers(reference: OpenedModel, other: OpenedModel) -> list[str]:
    names = {spec.name for spec in reference.layers} ^ {spec.name for spec in other.layers}
    return (
        [f"layer {min(names)} is a Mixture of Experts in one of the models only; give two of one architecture"]
        if names
        else []
    )


def _tensors(reference: OpenedModel, other: OpenedModel, vocabulary: Sequence[str]) -> list[str]:
    a, b = reference.on_meta, other.on_meta
    for name in sorted((a.keys() | b.keys()) - ({*reference.carried} ^ {*other.carried})):
        if name not in a or name not in b:
            owner = reference if name in a else other
            if (counterpart := _counterpart(name, a.keys() & b.keys(), owner)) is None:
                side = "reference" if name in a else "other"
                return [f"tensor {name} exists in the {side} model only; give two models of one architecture"]
            if not torch.equal(owner.tensors[name], owner.tensors[counterpart]):
                return [
                    f"{name} and {counterpart} are tied, but not equal in {owner.name}; "
                    "set tie_word_embeddings to false"
                ]
        elif a[name].shape != b[name].shape and name not in vocabulary:
            return [
                f"tensor {name} has shape {tuple(a[name].shape)} in the reference, {tuple(b[name].shape)} in the "
                "other; give two models of one size"
            ]
    return []


def _counterpart(name: str, known: set[str], side: OpenedModel) -> str | None:
    """A tensor of `known` that is tied to `name`."""
    tied = tied_names(side.tensors.model) if isinstance(side.tensors, Checkpoint) else {}
    return min(tied.get(name, set()) & known, default=None)


def _carried(reference: OpenedModel, other: OpenedModel) -> list[Difference]:
    """Tensors that Transformers ignores, of one of the models only."""
    sides = [{*reference.carried} - {*other.carried}, {*other.carried} - {*reference.carried}]
    return [
        Difference(
            "carried", f"{len(names)} tensors that Transformers ignores, such as {min(names)}, are in the {side} only"
        )
        for side, names in zip(("reference", "other"), sides, strict=True)
        if names
    ]


def _dtypes(reference: OpenedModel, other: OpenedModel) -> list[Difference]:
    a, b = reference.on_meta, other.on_meta
    if not (names := [name for name in a.keys() & b.keys() if a[name].dtype != b[name].dtype]):
        return []
    first = min(names)
    text = (
        f"{len(names)} tensors have another dtype, such as {first}: {a[first].dtype} in the reference, "
        f"{b[first].dtype} in the other"
    )
    return [Difference("dtypes", text)]
