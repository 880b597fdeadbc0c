"""The alignment of two models: a small value that can be saved, loaded and applied."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from hf_moe_lmc.adapters import MoeLayerSpec, alignable_layers
from hf_moe_lmc.checkpoints import HubOptions, find_source, tensor_bytes
from hf_moe_lmc.errors import IncompatiblePairError
from hf_moe_lmc.matching import LayerAlignment, Verdict
from hf_moe_lmc.symmetry import MoeSymmetry

from .artefact import ARTEFACT, read_artefact, symmetry_tensors, write_artefact
from .config import AlignmentConfig
from .model_record import ModelRecord

LiveModel = TypeVar("LiveModel", bound=nn.Module)


@dataclass(frozen=True)
class Alignment:
    """What brings one model close to another, layer by layer.

    Args:
        layers: module name of each Mixture-of-Experts layer -> its symmetry and distances.
        config: how it was found; None if it was not found by matching.
        reference, other: the models that it was made for; None if there is no such pair.
    """

    layers: dict[str, LayerAlignment]
    config: AlignmentConfig | None = None
    reference: ModelRecord | None = None
    other: ModelRecord | None = None

    @property
    def symmetries(self) -> dict[str, MoeSymmetry]:
        """Module name of each layer -> the symmetry to apply to it."""
        return {name: layer.symmetry for name, layer in self.layers.items()}

    @property
    def digest(self) -> str:
        """Sha-256 of the symmetries."""
        digest = hashlib.sha256()
        for name, tensor in sorted(symmetry_tensors(self.symmetries).items()):
            digest.update(name.encode())
            digest.update(tensor_bytes(tensor.contiguous()))
        return digest.hexdigest()

    def summary(self) -> str:
        """One line: how far the models were apart, and how far they are once aligned."""
        before = math.hypot(*(layer.distance_before for layer in self.layers.values()))
        after = math.hypot(*(layer.distance_after for layer in self.layers.values()))
        moved = sum(not layer.symmetry.is_identity for layer in self.layers.values())
        return f"{moved} of {len(self.layers)} layers moved: distance {before:.4g} before, {after:.4g} after"

    def verdict(self) -> Verdict | None:
        """What the alignment is worth; None where it was not found by matching."""
        evidence = {name: layer.evidence for name, layer in self.layers.items() if layer.evidence}
        return Verdict(evidence) if evidence else None

    def inverse(self) -> "Alignment":
        """What undoes this alignment."""
        return Alignment(
            {
                name: LayerAlignment(layer.symmetry.inverse(), layer.distance_after, layer.distance_before)
                for name, layer in self.layers.items()
            }
        )

    def compose(self, first: "Alignment") -> "Alignment":
        """`first`, then this one, in one; distances are those before the first and after the last.

        Raises:
            IncompatiblePairError: the two are of different layers, or of different sizes.
        """
        if self.layers.keys() != first.layers.keys():
            name = min(self.layers.keys() ^ first.layers.keys())
            raise IncompatiblePairError(f"layer {name} exists in one of the alignments only")
        layers = {}
        for name, last in self.layers.items():
            start = first.layers[name]
            if last.symmetry.shape != start.symmetry.shape:
                raise IncompatiblePairError(
                    f"layer {name}: sizes {last.symmetry.shape} in one alignment, {start.symmetry.shape} in the other"
                )
            symmetry = last.symmetry @ start.symmetry
            layers[name] = LayerAlignment(symmetry, start.distance_before, last.distance_after)
        return Alignment(layers, None, None, first.other)

    def apply(self, model: LiveModel) -> LiveModel:
        """Rewrite `model` in place, and return it; its function does not change, and no weight is rounded.

        Raises:
            IncompatiblePairError: `model` has other layers than the alignment was made for.
        """
        state = model.state_dict()
        rewritten = apply_symmetries(state, alignable_layers(model), self.symmetries)
        with torch.no_grad():
            for name, tensor in state.items():
                if rewritten[name] is not tensor:
                    tensor.copy_(rewritten[name])
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the permutations to `alignment.safetensors` and the figures to `alignment_config.json` in `folder`."""
        write_artefact(Path(folder), self.layers, self.config, self.reference, self.other)

    def push_to_hub(
        self,
        repository: str,
        private: bool = False,
        create_pr: bool = False,
        licence: str | None = None,
        token: str | None = None,
    ) -> str:
        """Send what `save_pretrained` writes, and a card, to a repository; see `hf_moe_lmc.hub.push_alignment`."""
        from hf_moe_lmc.hub import push_alignment

        return push_alignment(self, repository, private, create_pr, licence, token)

    @classmethod
    def from_pretrained(cls, name: str | Path, options: HubOptions | None = None) -> "Alignment":
        """Read what `save_pretrained` wrote, from a folder or from a repository on the Hub (`org/alignment@revision`).

        Args:
            name: folder or repository.
            options: revision, subfolder, token, cache_dir, local_files_only.

        Raises:
            BadInputError: a file is missing or does not hold an alignment.
            HubError: the Hub does not give it.
        """
        return cls(*read_artefact(find_source(name, options, ARTEFACT).folder))


def apply_symmetries(
    tensors: Mapping[str, Tensor], specs: Sequence[MoeLayerSpec], symmetries: Mapping[str, MoeSymmetry]
) -> dict[str, Tensor]:
    """All of `tensors`, those of the layers in `symmetries` (keyed by layer name) rewritten.

    Raises:
        IncompatiblePairError: a layer is unknown, or its sizes are not those of its symmetry.
    """
    known = {spec.name: spec for spec in specs}
    result = dict(tensors)
    for name, symmetry in symmetries.items():
        if name not in known:
            raise IncompatiblePairError(f"layer {name} of the alignment does not exist in the model")
        try:
            result |= known[name].act(symmetry, tensors)
        except ValueError as error:
            raise IncompatiblePairError(f"layer {name}: {error}") from None
    return result
