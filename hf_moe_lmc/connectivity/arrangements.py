"""The paths of a comparison: the other model as it is, aligned, and under controls; plain and repaired."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.matching import align_layers
from hf_moe_lmc.symmetry import MoeSymmetry

from .live_weights import BorrowedWeights
from .path import Path, linear_path, moved, norm_preserving_path
from .rescale_control import can_rescale, rescaled_path

Repair = Literal["none", "norms", "rescale"]
Arrangement = Literal["naive", "random", "units", "aligned"]

ARRANGEMENTS: dict[Arrangement, str] = {
    "naive": "as it is",
    "random": "under a random element of its symmetry group",
    "units": "its units aligned, its experts in their order",
    "aligned": "aligned",
}


def path_name(arrangement: Arrangement, repair: Repair) -> str:
    """`aligned`, `aligned + norms` and so on."""
    return arrangement if repair == "none" else f"{arrangement} + {repair}"


def arranged(
    reference: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    specs: Sequence[MoeLayerSpec],
    symmetries: Mapping[str, MoeSymmetry],
    seed: int,
) -> dict[Arrangement, Mapping[str, Tensor]]:
    """The weights of `other` in every arrangement, computed layer by layer when asked for.

    Args:
        reference, other: weights under module names.
        specs: the Mixture-of-Experts layers.
        symmetries: the alignment, by layer name.
        seed: of the random element.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        spec.name: spec.group.random_derangement(*spec.read(other).symmetry_shape, generator=generator)
        for spec in specs
    }
    units = {spec.name: align_layers(spec.read(reference), spec.read(other), "units").symmetry for spec in specs}
    return {
        "naive": other,
        "random": moved(other, specs, drawn),
        "units": moved(other, specs, units),
        "aligned": moved(other, specs, symmetries),
    }


def repaired_paths(
    reference: BorrowedWeights,
    other: Mapping[str, Tensor],
    specs: Sequence[MoeLayerSpec],
    calibration: Sequence[Mapping[str, Tensor]],
) -> dict[Repair, Path]:
    """The straight line from `reference` to `other`, plain and under every repair that can be had.

    Args:
        reference: weights of the model where the rescaling of outputs is calibrated.
        other: weights under module names.
        specs: the Mixture-of-Experts layers.
        calibration: batches for it; without any, there is no such repair.
    """
    line = linear_path(reference, other)
    paths: dict[Repair, Path] = {"none": line, "norms": norm_preserving_path(reference, other, specs)}
    if calibration and (rescalable := [spec for spec in specs if can_rescale(spec)]):
        paths["rescale"] = rescaled_path(reference, line, rescalable, calibration)
    return paths
