"""The alignment of two models, or of several: a small value that can be saved, loaded and applied."""

from __future__ import annotations  # `help` shows names of types instead of all that they stand for

import hashlib
import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, TypeVar, Unpack

import torch
from torch import Tensor, nn

from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.checkpoints import HubOptions, find_source, is_ignored, tensor_bytes
from hf_moe_lmc.errors import IncompatiblePairError
from hf_moe_lmc.matching import LayerAlignment, Verdict
from hf_moe_lmc.short_help import ShortHelp
from hf_moe_lmc.symmetry import MoeSymmetry

from .config import AlignmentConfig
from .live_weights import LiveWeights, load_into
from .model_record import ModelRecord
from .saved_alignment import SAVED_FILES, read_alignment, symmetry_tensors, write_alignment
from .weights import aligned

LiveModel = TypeVar("LiveModel", bound=nn.Module)


@dataclass(frozen=True, repr=False)
class Alignment(metaclass=ShortHelp):
    """The rewrite that brings one model close to another, layer by layer.

    Args:
        layers: module name of each Mixture-of-Experts layer -> its symmetry and distances.
        config, reference, other: the settings of the matching, and the models; None where it was not found by matching.
    """

    layers: dict[str, LayerAlignment]
    config: AlignmentConfig | None = None
    reference: ModelRecord | None = None
    other: ModelRecord | None = None

    def __repr__(self) -> str:
        pair = f": {self.other.name} to {self.reference.name}" if self.other and self.reference else ""
        verdict = self.verdict()
        lines = [f"Alignment{pair}", self.summary(), *([verdict.text()] if verdict else [])]
        return "\n  ".join(lines)

    def _repr_html_(self) -> str:
        """The figures of all layers as an HTML table, for notebooks."""
        rows = self.layer_table()
        head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in rows[0]) if rows else ""
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(_shown(value))}</td>' for value in row.values())}</tr>" for row in rows
        )
        return f"<p>{escape(repr(self))}</p><table><tr>{head}</tr>{body}</table>"

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
        """One line: the distance of the models before and after alignment, and how many layers changed."""
        before = math.hypot(*(layer.distance_before for layer in self.layers.values()))
        after = math.hypot(*(layer.distance_after for layer in self.layers.values()))
        changed = sum(not layer.symmetry.is_identity for layer in self.layers.values())
        return f"{changed} of {len(self.layers)} layers permuted: distance {before:.4g} before, {after:.4g} after"

    def verdict(self) -> Verdict | None:
        """The verdict of the pair, layer by layer; None where it was not found by matching."""
        evidence = {name: layer.evidence for name, layer in self.layers.items() if layer.evidence}
        return Verdict(evidence) if evidence else None

    def layer_table(self) -> list[dict[str, Any]]:
        """One row per layer, for `pandas.DataFrame`; of its experts, and of all units, the shares that are permuted."""
        rows = []
        for name, layer in self.layers.items():
            symmetry = layer.symmetry
            units = [part.permutation.index for part in (symmetry.units, symmetry.shared_units) if part is not None]
            rows.append(
                {
                    "name": name,
                    "distance_before": layer.distance_before,
                    "distance_after": layer.distance_after,
                    "experts_permuted": _permuted([symmetry.experts.index]),
                    "units_permuted": _permuted(units),
                    "verdict": layer.evidence.label.replace("_", " ") if layer.evidence else None,
                }
            )
        return rows

    def expert_table(self) -> list[dict[str, Any]]:
        """One row per expert, for `pandas.DataFrame`: its layer, slot and source, and the share of permuted units."""
        return [
            {
                "layer": name,
                "slot": slot,
                "source": source,
                "units_permuted": _permuted([layer.symmetry.units.permutation.index[slot]]),
            }
            for name, layer in self.layers.items()
            for slot, source in enumerate(layer.symmetry.experts.index.tolist())
        ]

    def inverse(self) -> "Alignment":
        """The alignment that undoes this one."""
        return Alignment(
            {
                name: LayerAlignment(layer.symmetry.inverse(), layer.distance_after, layer.distance_before)
                for name, layer in self.layers.items()
            }
        )

    def compose(self, first: "Alignment") -> "Alignment":
        """`first`, then this one, in one; IncompatiblePairError where their layers, or sizes, differ."""
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
        """Rewrite `model` in place, rounding nothing, and return it; IncompatiblePairError where its layers differ."""
        specs = alignable_layers(model)
        check_known(self, {spec.name for spec in specs}, model, "the model")
        load_into(model, aligned(LiveWeights(model), specs, self.symmetries))
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the permutations to `alignment.safetensors` and the figures to `alignment_config.json` in `folder`."""
        write_alignment(Path(folder), self.layers, self.config, self.reference, self.other)

    @classmethod
    def from_pretrained(cls, name: str | Path, **hub: Unpack[HubOptions]) -> "Alignment":
        """Read a saved alignment, from a folder or the Hub (`org/alignment@revision`); `hub`: revision, token, ...."""
        return cls(*read_alignment(find_source(name, hub, SAVED_FILES).folder))


@dataclass(frozen=True)
class MutualAlignment(metaclass=ShortHelp):
    """Alignments of several models to one another; the first model stays as it is. A sequence of the alignments.

    Args:
        alignments: one per model but the first. A layer that was matched on, to the others, has no evidence: what was
            found of it and the first model is no longer so.
        reference_distance: root of the total squared distance of all pairs of models, over all layers, with every model
            aligned to the first.
        distance: the same with these alignments; never more.
    """

    alignments: tuple[Alignment, ...] = field(repr=False)
    reference_distance: float
    distance: float

    def __getitem__(self, index: int) -> Alignment:
        return self.alignments[index]

    def __len__(self) -> int:
        return len(self.alignments)

    def __iter__(self) -> Iterator[Alignment]:
        return iter(self.alignments)


def check_known(alignment: Alignment, layers: Container[str], model: nn.Module, name: str) -> None:
    """Raise `IncompatiblePairError` if it has a layer that is none of those of a model, and not ignored there."""
    for layer in alignment.layers:
        if layer not in layers and not is_ignored(model, layer):
            raise IncompatiblePairError(f"layer {layer} of the alignment does not exist in {name}")


def _permuted(orders: Sequence[Tensor]) -> float:
    """Share of the entries, along the last axis of index tensors, that are not at their place."""
    stays = [(order == torch.arange(order.shape[-1])).flatten() for order in orders]
    return 1 - torch.cat(stays).double().mean().item()


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
