"""Needs of a long run, before it starts: what it will read, write, hold and compute."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .config import AlignmentConfig
from .opened_model import OpenedModel
from .pair import CheckedModels
from .resources import Resources, matching_bytes
from .write import WriteOptions, cut_steps, notes, written_bytes

BASE_BYTES = 500 * 10**6  # Python, torch and Transformers themselves


@dataclass(frozen=True)
class Plan:
    """Needs of a run; sizes in bytes.

    Args:
        layers: number of Mixture-of-Experts layers.
        read, written: from and to disk.
        memory: an upper estimate of the peak.
        free: on the disk of the output; None if nothing large is written.
        differences: of the models, in words.
        device: where layers are matched; None if none is.
        work: in words; empty where the command says it.
        matched: of the layers that are matched, of both models.
        unit_pairs: number of pairs of units within an expert, over all experts that are matched.
        experts: number of experts that are matched.
        averaged: read to be averaged or reordered.
        source: one of the files that will be read; None of live models.
        notes: on what Transformers ignores, and on files that will not be copied.
    """

    layers: int
    read: int
    written: int
    memory: int
    free: int | None
    differences: tuple[str, ...]
    device: str | None = None
    work: str = ""
    matched: int = 0
    unit_pairs: int = 0
    experts: int = 0
    averaged: int = 0
    source: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One fact a line."""
        lines = [f"to do                      {self.work}"] if self.work else []
        lines += [
            f"Mixture-of-Experts layers  {self.layers}",
            f"to read                    {_size(self.read)}",
            f"to write                   {_size(self.written)}",
            f"memory at most about       {_size(self.memory)}",
        ]
        if self.free is not None:
            short = "" if self.free >= self.written else ", which is too little"
            lines.append(f"free on the output's disk  {_size(self.free)}{short}")
        lines += [] if self.device is None else [f"layers are matched on      {self.device}"]
        lines += [f"difference: {difference}" for difference in self.differences]
        lines += self.notes
        return "\n".join(lines) + "\n"


def plan_alignment(models: CheckedModels, config: AlignmentConfig, resources: Resources) -> Plan:
    """Needs of aligning models.

    Raises:
        BadInputError: it cannot be done with these resources.
    """
    reference, needed = models.reference, {}
    for other in models.others:
        for name, size in matching_bytes(reference, other).items():
            needed[name] = max(size, needed.get(name, 0))
    device, count = resources.device_for(needed), len(models.models)
    read = sum(_moe_bytes(model) for model in models.models)
    # Of several models, a layer of each is held and averaged.
    memory = max(needed.values()) + max(count - 2, 0) * max(needed.values()) // 2
    layers = [spec.read(reference.on_meta) for spec in reference.all_layers]
    banks = [bank for layer in layers for bank in (layer.experts, layer.shared_experts) if bank]
    pairs, times = sum(bank.num_experts * bank.num_units**2 for bank in banks), len(models.others)
    return Plan(
        len(layers),
        read,
        0,
        BASE_BYTES + memory,
        None,
        models.texts,
        str(device),
        matched=sum(_moe_bytes(reference) + _moe_bytes(other) for other in models.others),
        unit_pairs=times * pairs,
        experts=times * sum(bank.num_experts for bank in banks),
        source=_largest_file(reference),
    )


def plan_writing(
    models: CheckedModels, likes: Sequence[OpenedModel], folder: str | Path, options: WriteOptions
) -> Plan:
    """Needs of writing checkpoints made of `models`, alignment not included.

    Args:
        models: that are read; one for a checkpoint that is only rewritten.
        likes: for every checkpoint the model that it is written like.
        folder: where.
        options: the form of the checkpoints.
    """
    largest = max(
        step.nbytes
        for model in models.models
        for step in cut_steps(
            model.sizes, model.all_layers, [g.names for g in model.checkpoint.groups] if model.checkpoint else []
        )
    )
    widening = max([1.0, *(written_bytes(like, options) / sum(like.sizes.values()) for like in likes)])
    held = len(models.models) + 1 + widening
    read = sum(sum(model.sizes.values()) for model in models.models)
    return Plan(
        len(models.reference.all_layers),
        read,
        sum(written_bytes(like, options) for like in likes),
        BASE_BYTES + int(held * largest),
        shutil.disk_usage(Path(folder).absolute().parent).free,
        models.texts,
        averaged=read * len(likes),
        notes=tuple(dict.fromkeys(note for like in likes for note in notes(like.carried, like.left_behind))),
        source=_largest_file(models.reference),
    )


def both(alignment: Plan, writing: Plan) -> Plan:
    """Needs of aligning first and writing then."""
    return replace(
        writing,
        read=alignment.read + writing.read,
        memory=max(alignment.memory, writing.memory),
        device=alignment.device,
        matched=alignment.matched,
        unit_pairs=alignment.unit_pairs,
        experts=alignment.experts,
    )


def _moe_bytes(model: OpenedModel) -> int:
    return sum(model.sizes[name] for spec in model.all_layers for name in spec.tensor_names)


def _largest_file(model: OpenedModel) -> str | None:
    files = model.checkpoint.fingerprints if model.checkpoint else {}
    return str(max(files, key=lambda file: files[file].size)) if files else None


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
