"""A checkpoint on disk as a lazy mapping of tensors under module names."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.workers import each

from .conversion import MisfitError, TensorGroup, tensor_groups, tied_names
from .dequantised import QuantisedTensor, dequantised
from .fingerprint import Fingerprint
from .shards import stored_tensors
from .skeleton import CONFIG_NAME, drop_quantisation, quantisation
from .stored_tensor import Stored


@dataclass(frozen=True, eq=False)
class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a checkpoint under module names; every look reads them from disk, nothing is kept.

    Those that are quantised are read as bfloat16.

    Args:
        folder: where its files are.
        model: its skeleton, on the meta device.
        stored: checkpoint key -> where the tensor lies.
        groups: how stored tensors make up the model's.
        ignored: those that are no part of the model and that Transformers ignores, such as layers that predict further
            tokens; their names are their keys.
        fingerprints: of its files, when it was opened.
        interchanged: module names of tensors that may change places, and so are read in one dtype.
    """

    folder: Path
    model: PreTrainedModel = field(repr=False)
    stored: dict[str, Stored] = field(repr=False)
    groups: list[TensorGroup] = field(repr=False)
    ignored: dict[str, Stored] = field(repr=False)
    fingerprints: dict[Path, Fingerprint] = field(repr=False)
    interchanged: tuple[tuple[str, ...], ...] = field(repr=False)

    @classmethod
    def open(cls, folder: Path, model: PreTrainedModel, interchanged: Iterable[tuple[str, ...]] = ()) -> "Checkpoint":
        """Plan the reading of the checkpoint in `folder`; reads headers only.

        Weights are plain from here on: what the configuration of `model` says of their quantisation is dropped.

        Args:
            folder: where its files are.
            model: its skeleton.
            interchanged: module names of tensors that may change places.

        Raises:
            BadInputError: it does not hold the tensors of `model`, each in its shape, or they are quantised in a way
                that is not known here.
        """
        files = stored_tensors(folder)
        stored: dict[str, Stored] = dict(files)
        if settings := quantisation(model.config):
            stored = dequantised(files, settings, folder / CONFIG_NAME)
            drop_quantisation(model.config)
        on_meta = {key: torch.empty(entry.shape, dtype=entry.dtype, device="meta") for key, entry in stored.items()}
        try:
            groups, ignored = tensor_groups(model, on_meta)
        except MisfitError as error:
            raise BadInputError(f"{stored[error.key].file}: {error}") from None
        except BadInputError as error:
            raise BadInputError(f"{folder}: {error}") from None
        watched = sorted({entry.file for entry in files.values()} | {folder / CONFIG_NAME})
        return cls(
            folder,
            model,
            stored,
            groups,
            {key: stored[key] for key in ignored},
            {file: Fingerprint.of(file) for file in watched},
            tuple(interchanged),
        )

    @cached_property
    def _group_of(self) -> dict[str, TensorGroup]:
        groups = {name: group for group in self.groups for name in group.names}
        # Of tied tensors, most checkpoints hold one.
        for name, names in tied_names(self.model).items():
            if name not in groups and (counterparts := names & groups.keys()):
                groups[name] = replace(groups[min(counterparts)], names=(name,))
        return groups

    @cached_property
    def _partners(self) -> dict[str, tuple[str, ...]]:
        return {name: names for names in self.interchanged for name in names}

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in self.model.state_dict().items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.read([name])[name]

    def __iter__(self) -> Iterator[str]:
        return (name for group in self.groups for name in group.names)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def read(self, names: Iterable[str], device: torch.device | str | None = None) -> dict[str, Tensor]:
        """The tensors of `names`, and those that are stored in one with them.

        Args:
            names: module names.
            device: where they go, None is the CPU; on the way to another, the CPU holds one stored tensor at a time.
        """
        groups = {id(group): group for group in (self._group_of[name] for name in names)}.values()
        return {name: tensor for group in groups for name, tensor in self._read_group(group, device).items()}

    @property
    def is_quantised(self) -> bool:
        """Whether some of its weights are stored as codes."""
        return any(isinstance(entry, QuantisedTensor) for entry in self.stored.values())

    def on_meta(self) -> dict[str, Tensor]:
        """All tensors without their values."""
        return {name: tensor for group in self.groups for name, tensor in self._empty(group, "meta").items()}

    def dtype_of(self, group: TensorGroup) -> torch.dtype:
        """The smallest dtype that holds all values of a group, and of those that it may change places with."""
        partners = (self._group_of[name] for name in self._partners.get(group.names[0], ()))
        keys = (key for one in (group, *partners) for key in one.keys)
        return reduce(torch.promote_types, (self.stored[key].dtype for key in keys))

    def check_finite(self, names: Iterable[str]) -> None:
        """Raise `BadInputError`, naming file and tensor, if a value that `names` are made of is NaN or infinite."""
        for entry in (self.stored[key] for name in names for key in self._group_of[name].keys):
            # What is to be found here is rare: this reads once more.
            if not entry.read().isfinite().all():
                raise BadInputError(
                    f"{entry.file}: {entry.key} holds NaN or infinite values; give an intact checkpoint"
                )

    def check_unchanged(self) -> None:
        """Raise `BadInputError` if one of its files is not what it was when it was opened."""
        for file, fingerprint in self.fingerprints.items():
            if not fingerprint.is_unchanged(file):
                raise BadInputError(f"{file} changed while it was read; start again when nothing writes to it")

    def _empty(self, group: TensorGroup, device: torch.device | str | None) -> dict[str, Tensor]:
        shapes = self._shapes if group.conversion else dict.fromkeys(group.names, self.stored[group.keys[0]].shape)
        dtype = self.dtype_of(group)
        return {name: torch.empty(shapes[name], dtype=dtype, device=device) for name in group.names}

    def _read_group(self, group: TensorGroup, device: torch.device | str | None) -> dict[str, Tensor]:
        entries, tensors = [self.stored[key] for key in group.keys], self._empty(group, device)
        parts = group.to_stored(tensors)
        owned = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
        if any(part.untyped_storage().data_ptr() not in owned for part in parts.values()):
            return group.to_module({entry.key: entry.read(device) for entry in entries})
        # What would be written are views of the tensors: reading into them needs no second copy.
        each(lambda entry: entry.read_into(parts[entry.key]), entries)
        return tensors
