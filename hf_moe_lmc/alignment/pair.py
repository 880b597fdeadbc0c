"""Whether models can be merged at all, decided before a weight is read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.utils import logging

from hf_moe_lmc.checkpoints import Checkpoint, HubOptions, tied_names
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError

from .config_differences import config_differences
from .file_differences import file_differences
from .opened_model import Model, OpenedModel, open_model

MOST_NAMED = 6  # differences in one message

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class CheckedModels:
    """Two models or more that compute the same function of their weights; made by `check_models`.

    Args:
        models: the reference, and those that get aligned to it.
        differences: of their configurations and files, all harmless, in words.
    """

    models: tuple[OpenedModel, ...]
    differences: tuple[str, ...] = ()

    @property
    def reference(self) -> OpenedModel:
        """The first model."""
        return self.models[0]

    @property
    def others(self) -> tuple[OpenedModel, ...]:
        """All models but the first."""
        return self.models[1:]


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
    """Check every model against the first; see `check_pair`."""
    reference, *others = models
    differences = [difference for other in others for difference in check_pair(reference, other)]
    return CheckedModels(tuple(models), tuple(dict.fromkeys(differences)))


def check_pair(reference: OpenedModel, other: OpenedModel) -> list[str]:
    """Refuse two models that do not compute the same function of their weights and inputs.

    Compared: class, configuration, Mixture-of-Experts layers and their sizes, names and shapes of all tensors, tied
    weights, tokenizers. A warning says if both are one checkpoint.

    Returns:
        differences that do no harm, in words.

    Raises:
        IncompatiblePairError: naming the differences that do, one to a clause.
        BadInputError: a file beside a checkpoint is damaged.
    """
    if type(reference.model) is not type(other.model):
        raise IncompatiblePairError(
            f"the reference is a {type(reference.model).__name__}, the other a {type(other.model).__name__}; "
            "give two models of one class"
        )
    harmful, harmless = config_differences(*(getattr(side.model, "config", None) or {} for side in (reference, other)))
    harmful += _layers(reference, other) + _tensors(reference, other)
    harmless += _dtypes(reference, other)
    if reference.source and other.source:
        files = file_differences(reference.source.folder, other.source.folder)
        harmful += files[0]
        harmless += files[1]
        if reference.source.folder.resolve() == other.source.folder.resolve():
            harmless.append("both are the same checkpoint")
            logger.warning_once(f"{reference.name} and {other.name} are the same checkpoint")
    if harmful:
        more = [f"and {len(harmful) - MOST_NAMED} more"] if len(harmful) > MOST_NAMED else []
        raise IncompatiblePairError("; ".join(harmful[:MOST_NAMED] + more))
    return harmless


def _layers(reference: OpenedModel, other: OpenedModel) -> list[str]:
    names = {spec.name for spec in reference.layers} ^ {spec.name for spec in other.layers}
    return [f"layer {min(names)} is a Mixture of Experts in one of the models only"] if names else []


def _tensors(reference: OpenedModel, other: OpenedModel) -> list[str]:
    a, b = reference.on_meta, other.on_meta
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            owner = reference if name in a else other
            if (counterpart := _counterpart(name, a.keys() & b.keys(), owner)) is None:
                return [f"tensor {name} exists in the {'reference' if name in a else 'other'} model only"]
            if not torch.equal(owner.tensors[name], owner.tensors[counterpart]):
                return [
                    f"{name} and {counterpart} are tied, but not equal in {owner.name}; "
                    "set tie_word_embeddings to false"
                ]
        elif a[name].shape != b[name].shape:
            return [
                f"tensor {name} has shape {tuple(a[name].shape)} in the reference, {tuple(b[name].shape)} in the other"
            ]
    return []


def _counterpart(name: str, known: set[str], side: OpenedModel) -> str | None:
    """A tensor of `known` that is tied to `name`."""
    tied = tied_names(side.tensors.model) if isinstance(side.tensors, Checkpoint) else {}
    return min(tied.get(name, set()) & known, default=None)


def _dtypes(reference: OpenedModel, other: OpenedModel) -> list[str]:
    a, b = reference.on_meta, other.on_meta
    if not (names := [name for name in a.keys() & b.keys() if a[name].dtype != b[name].dtype]):
        return []
    first = min(names)
    return [
        f"{len(names)} tensors have another dtype, such as {first}: {a[first].dtype} in the reference, "
        f"{b[first].dtype} in the other; the reference's is kept"
    ]
