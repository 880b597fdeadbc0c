"""The files of a saved alignment: permutations as tensors, figures and records as JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from hf_moe_lmc.checkpoints import StoredTensor, read_header, read_json
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.matching import LayerAlignment, LayerEvidence
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation, SignedPermutation

from .config import CONFIG_NAME, AlignmentConfig, versions
from .model_record import ModelRecord
from .records import of_record

WEIGHTS_NAME = "alignment.safetensors"
SAVED_FILES = (WEIGHTS_NAME, CONFIG_NAME)
EARLIER_ORDERS = ("sketch",)
LARGEST = 2**28  # bytes of a tensor; 64 times those of the largest layers known
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
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    (folder / WEIGHTS_NAME).write_bytes(content)  # of a full disk, safetensors raises no OSError
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
        stored = read_header(folder / WEIGHTS_NAME)
        if large := [tensor for tensor in stored.values() if tensor.nbytes > LARGEST]:
            raise ValueError(f"{large[0].key} has the shape {large[0].shape}; no layer is as large")
        layers = {name: _layer(name, figures, stored) for name, figures in described["layers"].items()}
        if stored:
            raise ValueError(f"{min(stored)} belongs to no layer")
        config, reference, other = (described[part] for part in ("config", "reference", "other"))
        return (
            layers,
            _config(config),
            None if reference is None else of_record(ModelRecord, reference),
            None if other is None else of_record(ModelRecord, other),
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
        shared, zero = symmetry.shared_experts, symmetry.zero_experts
        if shared and not shared.is_identity:
            tensors[f"{name}.shared_experts"] = shared.index
        if zero:
            tensors[f"{name}.zero_experts"] = zero.index
    return tensors


@dataclass(frozen=True)
class _Distances:
    distance_before: float
    distance_after: float


def _layer(name: str, figures: Any, stored: dict[str, StoredTensor]) -> LayerAlignment:
    """One layer of a saved alignment; takes its tensors out of `stored`, and reads none of another shape or dtype."""
    distances, shared = of_record(_Distances, figures), f"{name}.shared_units"
    if not (math.isfinite(distances.distance_before) and math.isfinite(distances.distance_after)):
        raise ValueError(f"layer {name}: {distances} are no distances")
    experts = _permutation(stored, f"{name}.experts", 1)
    units = _signed(stored, f"{name}.units")
    if len(units.signs) != experts.size:
        raise ValueError(f"{name}.units has the shape {tuple(units.signs.shape)} for {experts.size} experts")
    orders = [
        _permutation(stored, own, 1) if (own := f"{name}.{part}_experts") in stored else None
        for part in ("shared", "zero")
    ]
    symmetry = MoeSymmetry(experts, units, _signed(stored, shared) if shared in stored else None, *orders)
    if orders[0] and (symmetry.shared_units is None or len(symmetry.shared_units.signs) != orders[0].size):
        raise ValueError(f"{name}.shared_experts orders {orders[0].size} shared experts; its units are of others")
    table = stored.pop(f"{name}.expert_table", None)
    if table is not None and (table.shape, table.dtype) != ((experts.size,) * 2, torch.float32):
        raise ValueError(f"{name}.expert_table has the shape {table.shape} and the dtype {table.dtype}")
    return LayerAlignment(
        symmetry,
        distances.distance_before,
        distances.distance_after,
        _evidence(figures.get("evidence")),
        None if table is None else table.read(),
    )


def _config(record: Mapping[str, Any] | None) -> AlignmentConfig | None:
    """The settings of an alignment; None also for an expert order that only earlier versions knew."""
    if record is None or record.get("expert_order") in EARLIER_ORDERS:
        return None
    return AlignmentConfig.of_record(record)


def _evidence(record: Mapping[str, Any] | None) -> LayerEvidence | None:
    """The evidence of a layer; None where it lacks a figure that this version needs."""
    try:
        return of_record(LayerEvidence, record) if record else None
    except KeyError:
        return None


def _permutation(stored: dict[str, StoredTensor], name: str, axes: int) -> Permutation:
    index = stored.pop(name)
    if index.dtype != torch.int64 or len(index.shape) != axes:
        raise ValueError(f"{name} holds no indices of {axes} axes, but {index.shape} of {index.dtype}")
    try:
        return Permutation(index.read())
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _signed(stored: dict[str, StoredTensor], name: str) -> SignedPermutation:
    units, signs = _permutation(stored, name, 2), stored.pop(f"{name}.signs")
    if signs.dtype != torch.int8 or signs.shape != units.index.shape:
        raise ValueError(f"{name}.signs holds no signs of {tuple(units.index.shape)}, but {signs.shape}")
    try:
        return SignedPermutation(units, signs.read())
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
