"""A model to be aligned, live or on disk, seen the same way."""

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

import hf_moe_lmc.modeling  # noqa: F401  (makes our own model types known to Transformers)
from hf_moe_lmc.adapters import MoeLayerSpec, alignable_layers, further_layers
from hf_moe_lmc.checkpoints import (
    COMPANIONS,
    Checkpoint,
    HubOptions,
    Source,
    find_companions,
    find_source,
    meta_model,
    read_config,
    saved_tensors,
)
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.short_help import ShortHelp

from .live_weights import LiveWeights


class LoadOptions(TypedDict, total=False):
    """Keywords of `from_pretrained` that say how a model is held in memory."""

    dtype: torch.dtype | str
    device_map: str | dict[str, Any]
    attn_implementation: str
    experts_implementation: str


class Pretrained(metaclass=ShortHelp):
    """A checkpoint with keywords of its own; stands wherever a model is asked for.

    Args:
        name: a folder, or a repository on the Hub (`org/model@revision`).
        options: revision, subfolder, token, cache_dir, local_files_only.
    """

    def __init__(self, name: str | Path, **options: Unpack[HubOptions]):
        self.name, self.options = name, options


Model = nn.Module | str | Path | Pretrained


@dataclass(frozen=True)
class OpenedModel:
    """A model and its tensors under module names.

    Args:
        name: class of a live model; folder or repository of a checkpoint.
        model: the live model, or the checkpoint's skeleton on the meta device.
        tensors: its weights: live, or its checkpoint.
        layers: its Mixture-of-Experts layers.
        source: where the checkpoint came from; None for a live model.
        further_layers: Mixture-of-Experts layers in the tensors of a checkpoint that Transformers ignores.
    """

    name: str
    model: nn.Module = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)
    layers: tuple[MoeLayerSpec, ...] = field(repr=False)
    source: Source | None = None
    further_layers: tuple[MoeLayerSpec, ...] = field(default=(), repr=False)

    @property
    def all_layers(self) -> tuple[MoeLayerSpec, ...]:
        """The layers of the model, then the further ones."""
        return self.layers + self.further_layers

    def layers_with(self, further: Container[str]) -> tuple[MoeLayerSpec, ...]:
        """The layers of the model, then those of the further ones that have one of these names."""
        return (*self.layers, *(layer for layer in self.further_layers if layer.name in further))

    @property
    def origin(self) -> dict[str, str | None]:
        """Name and commit."""
        return {"name": self.name, "commit": self.source.commit if self.source else None}

    @property
    def checkpoint(self) -> Checkpoint | None:
        """Its checkpoint; None for a live model."""
        return self.tensors if isinstance(self.tensors, Checkpoint) else None

    @cached_property
    def on_meta(self) -> dict[str, Tensor]:
        """All its tensors without their values; of tied ones one."""
        if self.checkpoint:
            return self.checkpoint.on_meta()
        if isinstance(self.model, PreTrainedModel):
            return saved_tensors(self.model)
        return {name: tensor.to("meta") for name, tensor in self.model.state_dict().items()}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Module name of each tensor -> bytes."""
        return {name: tensor.nbytes for name, tensor in self.on_meta.items()}

    @cached_property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Module name of each tensor -> dtype."""
        return {name: tensor.dtype for name, tensor in self.on_meta.items()}

    @property
    def paths(self) -> list[Path]:
        """Folder and files of a checkpoint; where files are links, as in a cache of the Hub, they may lie elsewhere."""
        return [self.checkpoint.folder, *self.checkpoint.fingerprints] if self.checkpoint else []

    @property
    def carried(self) -> list[str]:
        """Names of the tensors of a checkpoint that Transformers ignores, which are written like any other."""
        return sorted(self.checkpoint.ignored) if self.checkpoint else []

    @property
    def left_behind(self) -> Mapping[str, str]:
        """Files beside a checkpoint that are not copied -> why; see `find_companions`."""
        return find_companions(self.source.folder, self.source.listed).left_behind if self.source else {}

    @property
    def fingerprint(self) -> list[list[Any]]:
        """Values that change when a file of a checkpoint does; of a live model they never come again."""
        if self.checkpoint:
            return [[str(file), *astuple(own)] for file, own in self.checkpoint.fingerprints.items()]
        return [[self.name, id(self.model)]]

    def read(self, names: Iterable[str], device: torch.device | str | None = None) -> dict[str, Tensor]:
        """Some of its tensors; those of a checkpoint are read from disk.

        On a device; with None, those of a live model stay where they are.
        """
        if self.checkpoint:
            return self.checkpoint.read(names, device=device)
        return {name: self.tensors[name].to(device) for name in names}

    def check_finite(self, names: Iterable[str]) -> None:
        """Raise `BadInputError`, naming file and tensor, if a value in some tensors of a checkpoint is not finite."""
        if self.checkpoint:
            self.checkpoint.check_finite(names)

    def check_unchanged(self) -> None:
        """Raise `BadInputError` if a file of a checkpoint has changed since it was opened."""
        if self.checkpoint:
            self.checkpoint.check_unchanged()


def open_model(model: Model, options: HubOptions | None = None) -> OpenedModel:
    """A live model as it is, or the checkpoint in a folder or on the Hub, of which only headers are read.

    Args:
        model: what to open.
        options: revision, subfolder, token, cache_dir, local_files_only; those of a `Pretrained` win.

    Raises:
        BadInputError: the checkpoint is damaged or incomplete.
        UnsupportedArchitectureError: it is not known here.
        HubError: the Hub does not give it.
    """
    if isinstance(model, nn.Module):
        return OpenedModel(type(model).__name__, model, LiveWeights(model), alignable_layers(model))
    if isinstance(model, Pretrained):
        return open_checkpoint(model.name, cast(HubOptions, {**(options or {}), **model.options}))
    return open_checkpoint(model, options)


def open_skeleton(name: str | Path, options: HubOptions | None = None) -> PreTrainedModel:
    """The model of a folder or of a repository on the Hub, on the meta device; reads config.json alone.

    Raises:
        BadInputError: there is no usable config.json.
        UnsupportedArchitectureError: the model is not known here.
        HubError: the Hub does not give it.
    """
    return _skeleton(find_source(name, options, COMPANIONS))


def open_checkpoint(name: str | Path, options: HubOptions | None = None) -> OpenedModel:
    """The checkpoint in a folder or on the Hub, of which only headers are read; see `open_model`."""
    source = find_source(name, options)
    model = _skeleton(source)
    with _naming(source):
        layers = alignable_layers(model)
    checkpoint = Checkpoint.open(source.folder, model, (names for layer in layers for names in layer.interchanged))
    # A tensor that is converted by itself may be stored turned, which a layer read from keys cannot tell.
    keys = {n: g.keys for g in checkpoint.groups for n in g.names if not g.conversion or len(g.keys) > 1}
    shapes = {key: entry.shape for key, entry in checkpoint.stored.items()}
    further = further_layers(layers, keys, shapes, sorted(checkpoint.ignored))
    interchanged = (*checkpoint.interchanged, *(names for layer in further for names in layer.interchanged))
    return OpenedModel(source.name, model, replace(checkpoint, interchanged=interchanged), layers, source, further)


def load_model(opened: OpenedModel, options: LoadOptions | None = None) -> PreTrainedModel:
    """The model of a checkpoint, or a live model itself, ready for evaluation.

    The checkpoint was checked when it was opened: nothing that it lacks is filled in with random weights.

    Args:
        opened: of `open_model`.
        options: as for `from_pretrained`; the dtype is that of the checkpoint unless said otherwise.

    Raises:
        BadInputError: a live model is no model of Transformers; or Transformers refuses to load it so.
    """
    if opened.source is None:
        if not isinstance(opened.model, PreTrainedModel):
            raise BadInputError(f"a {opened.name} is no model of Transformers")
        return opened.model
    model_class = cast("type[PreTrainedModel]", type(opened.model))
    keywords: dict[str, Any] = {
        "dtype": "auto",
        # Named here, for config.json may ask for a kernel of a repository; that of the skeleton does not.
        "config": deepcopy(opened.model.config),
        "attn_implementation": "sdpa" if model_class._supports_sdpa else "eager",
    }
    keywords.update({name: value for name, value in (options or {}).items() if value is not None})
    folder, checkpoint = opened.source.folder, opened.checkpoint
    try:
        if checkpoint is None or not checkpoint.is_quantised:
            return model_class.from_pretrained(folder, local_files_only=True, use_safetensors=True, **keywords).eval()
        # Of what is dequantised here, Transformers reads a part, and some of that with further packages only.
        weights = {key: entry.read() for key, entry in checkpoint.stored.items() if key not in checkpoint.ignored}
        loaded = model_class.from_pretrained(None, state_dict=weights, **keywords).eval()
        if (folder / "generation_config.json").exists():
            loaded.generation_config = GenerationConfig.from_pretrained(folder)
    except ValueError as error:  # a device_map that is none, for example
        raise BadInputError(f"{opened.name} cannot be loaded: {' '.join(str(error).split())}") from None
    return loaded


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
