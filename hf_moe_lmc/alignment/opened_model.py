"""A model to be aligned, live or on disk, seen the same way."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import hf_moe_lmc.modeling  # noqa: F401  (makes our own model types known to Transformers)
from hf_moe_lmc.adapters import MoeLayerSpec, alignable_layers, packed_layer
from hf_moe_lmc.checkpoints import (
    COMPANIONS,
    Checkpoint,
    HubOptions,
    ReusedMemory,
    Source,
    find_source,
    meta_model,
    quantisation,
    read_config,
)
from hf_moe_lmc.errors import BadInputError


@dataclass(frozen=True)
class OpenedModel:
    """A model and its tensors under module names.

    Args:
        name: class of a live model; folder or repository of a checkpoint.
        model: the live model, or the checkpoint's skeleton on the meta device.
        tensors: its state dict, or its checkpoint.
        layers: its Mixture-of-Experts layers.
        source: where the checkpoint came from; None for a live model.
    """

    name: str
    model: nn.Module = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)
    layers: tuple[MoeLayerSpec, ...] = field(repr=False)
    source: Source | None = None

    @property
    def origin(self) -> dict[str, str | None]:
        """Name and commit."""
        return {"name": self.name, "commit": self.source.commit if self.source else None}

    @property
    def checkpoint(self) -> Checkpoint:
        """Its checkpoint.

        Raises:
            TypeError: the model is live.
        """
        if not isinstance(self.tensors, Checkpoint):
            raise TypeError(f"{self.name} is in memory; this works on checkpoints")
        return self.tensors

    @property
    def on_meta(self) -> dict[str, Tensor]:
        """All its tensors without their values."""
        if isinstance(self.tensors, Checkpoint):
            return self.tensors.on_meta()
        return {name: tensor.to("meta") for name, tensor in self.model.state_dict().items()}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Module name of each tensor -> bytes."""
        return {name: tensor.nbytes for name, tensor in self.on_meta.items()}

    def read(
        self, names: Iterable[str], memory: ReusedMemory | None = None, device: torch.device | str | None = None
    ) -> dict[str, Tensor]:
        """Some of its tensors; those of a checkpoint are read from disk, into `memory` if there is any.

        On a device; with None, those of a live model stay where they are.
        """
        if isinstance(self.tensors, Checkpoint):
            return self.tensors.read(names, memory, device)
        return {name: self.tensors[name].to(device) for name in names}

    def check_finite(self, names: Iterable[str]) -> None:
        """Raise `BadInputError`, naming file and tensor, if a value in some tensors of a checkpoint is not finite."""
        if isinstance(self.tensors, Checkpoint):
            self.tensors.check_finite(names)

    def check_unchanged(self) -> None:
        """Raise `BadInputError` if a file of a checkpoint has changed since it was opened."""
        if isinstance(self.tensors, Checkpoint):
            self.tensors.check_unchanged()


Model = nn.Module | str | Path


def open_model(model: Model, options: HubOptions | None = None, quantised: bool = False) -> OpenedModel:
    """A live model as it is, or the checkpoint in a folder or on the Hub, of which only headers are read.

    Args:
        model: what to open.
        options: revision, subfolder, token, cache_dir, local_files_only.
        quantised: whether the weights of a checkpoint may be quantised; its layers then are those with a router, whose
            experts can be reordered and nothing else.

    Raises:
        BadInputError: the checkpoint is damaged or incomplete.
        UnsupportedArchitectureError: it is not known here.
        HubError: the Hub does not give it.
    """
    if isinstance(model, nn.Module):
        return OpenedModel(type(model).__name__, model, model.state_dict(), alignable_layers(model))
    return open_checkpoint(model, options, quantised)


def open_skeleton(name: str | Path, options: HubOptions | None = None) -> PreTrainedModel:
    """The model of a folder or of a repository on the Hub, on the meta device; reads config.json alone.

    Raises:
        BadInputError: there is no usable config.json.
        UnsupportedArchitectureError: the model is not known here.
        HubError: the Hub does not give it.
    """
    return _skeleton(find_source(name, options, COMPANIONS))


def open_checkpoint(name: str | Path, options: HubOptions | None = None, quantised: bool = False) -> OpenedModel:
    """The checkpoint in a folder or on the Hub, of which only headers are read; see `open_model`."""
    source = find_source(name, options)
    model = _skeleton(source)
    with _naming(source):
        layers = alignable_layers(model)
    checkpoint = Checkpoint.open(source.folder, model, quantised)
    if quantisation(model.config):
        tensors = checkpoint.on_meta()
        with _naming(source):
            layers = tuple(packed_layer(spec, tensors) for spec in layers if spec.router)
    return OpenedModel(source.name, model, checkpoint, layers, source)


def _skeleton(source: Source) -> PreTrainedModel:
    config = read_config(source.folder)
    with _naming(source):
        return meta_model(config)


@contextmanager
def _naming(source: Source) -> Iterator[None]:
    """Errors say which of the models they are about."""
    try:
        yield
    except BadInputError as error:
        raise type(error)(f"{source.name}: {error}") from None
