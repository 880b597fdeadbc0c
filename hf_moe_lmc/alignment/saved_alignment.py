"""The files of a saved alignment: permutations as tensors, figures and records as JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hf_moe_lmc.checkpoints import read_header, read_json
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.matching import LayerAlignment, LayerEvidence
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation, SignedPermutation

from .config import CONFIG_NAME, AlignmentConfig, versions
from .model_record import ModelRecord

WEIGHTS_NAME = "alignment.safetensors"
SAVED_FILES = (WEIGHTS_NAME, CONFIG_NAME)
EARLIER_ORDERS = ("sketch",)
FORMAT = 2  # 1, that of version 0.1, has no such entry

Parts = tuple[dict[str, LayerAlignment], AlignmentConfig | None, ModelRecord | None, ModelRecord | None]


def write_alignment(
    folder: Path,
    layers: Mapping[str, LayerAlignment],
    config: AlignmentConfig | None,
    reference: ModelRecord | None,
    other: ModelRecord | None,
) -> None:
    """Write an alignment of these parts to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = symmetry_tensors({name: layer.symmetry for name, layer in layers.items()})
    tensors |= {
        f"{name}.expert_table": table for name, layer in layers.items() if (table := layer.expert_table) is not None
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS_NAME)
    described = {
        "format": FORMAT,
        "versions": versions(),
        "config": asdict(config) if config else None,
        "reference": asdict(reference) if reference else None,
        "other": asdict(other) if other else None,
        "layers": {
            name: {
                "distance_before": layer.distance_before,
                "distance_after": layer.distance_after,
                "evidence": asdict(layer.evidence) if layer.evidence else None,
            }
            for name, layer in layers.items()
        },
    }
    (folder / CONFIG_NAME).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def read_alignment(folder: Path) -> Parts:
    """Read the parts of an alignment that `write_alignment` wrote, in this format or an older one.

    Raises:
        BadInputError: a file is missing or does not hold an alignment, or a newer version wrote it.
    """
    if (folder / "config.json").is_file() and not (folder / CONFIG_NAME).exists():
        raise BadInputError(f"{folder} holds a model and no alignment; perhaps the two are swapped")
    try:
        described = read_json(folder / CONFIG_NAME)
        if (found := described.get("format", 1)) not in range(1, FORMAT + 1):
            raise BadInputError(
                f"its format is {found!r}, this version reads up to {FORMAT}; install a newer hf_moe_lmc"
            )
        tensors = {key: entry.read() for key, entry in read_header(folder / WEIGHTS_NAME).items()}
        layers = {name: _layer(name, figures, tensors) for name, figures in described["layers"].items()}
        if tensors:
            raise ValueError(f"{min(tensors)} belongs to no layer")
        config, reference, other = (described[part] for part in ("config", "reference", "other"))
        return (
            layers,
            _config(config),
            ModelRecord.of_record(reference) if reference else None,
            ModelRecord.of_record(other) if other else None,
        )
    except KeyError as error:
        raise BadInputError(f"{folder} does not hold an alignment: {error.args[0]} is missing") from None
    except (BadInputError, ValueError, TypeError, AttributeError) as error:
        raise BadInputError(f"{folder} does not hold an alignment: {' '.join(str(error).split())}") from None


def symmetry_tensors(symmetries: Mapping[str, MoeSymmetry]) -> dict[str, Tensor]:
    """Layer name -> symmetry, as tensors by name."""
    tensors = {}
    for name, symmetry in symmetries.items():
        tensors[f"{name}.experts"] = symmetry.experts.index
        for part, units in (("units", symmetry.units), ("shared_units", symmetry.shared_units)):
            if units is not None:
                tensors |= {f"{name}.{part}": units.permutation.index, f"{name}.{part}.signs": units.signs}
    return tensors


def _layer(name: str, figures: Mapping[str, Any], tensors: dict[str, Tensor]) -> LayerAlignment:
    """One layer of a saved alignment; takes its tensors out of `tensors`."""
    before, after, evidence = figures["distance_before"], figures["distance_after"], figures.get("evidence")
    if not all(type(figure) in (int, float) and math.isfinite(figure) for figure in (before, after)):
        raise ValueError(f"layer {name}: {before!r} and {after!r} are no distances")
    shared = f"{name}.shared_units"
    symmetry = MoeSymmetry(
        _permutation(tensors, f"{name}.experts"),
        _signed(tensors, f"{name}.units"),
        _signed(tensors, shared) if shared in tensors else None,
    )
    table = tensors.pop(f"{name}.expert_table", None)
    if table is not None and table.shape != (symmetry.experts.size,) * 2:
        raise ValueError(f"{name}.expert_table has the shape {tuple(table.shape)}")
    return LayerAlignment(symmetry, before, after, _evidence(evidence), table)


def _config(record: Mapping[str, Any] | None) -> AlignmentConfig | None:
    """The settings of an alignment; None also for an expert order that only earlier versions knew."""
    if record is None or record.get("expert_order") in EARLIER_ORDERS:
        return None
    return AlignmentConfig.of_record(record)


def _evidence(record: Mapping[str, Any] | None) -> LayerEvidence | None:
    """The evidence of a layer; None where it lacks a figure that this version needs."""
    try:
        return LayerEvidence.of_record(record) if record else None
    except (KeyError, TypeError):
        return None


def _permutation(tensors: dict[str, Tensor], name: str) -> Permutation:
    index = tensors.pop(name)
    if index.dtype != torch.int64 or not index.ndim:
        raise ValueError(f"{name} holds no indices")
    try:
        return Permutation(index)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _signed(tensors: dict[str, Tensor], name: str) -> SignedPermutation:
    units, signs = _permutation(tensors, name), tensors.pop(f"{name}.signs")
    try:
        return SignedPermutation(units, signs)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
