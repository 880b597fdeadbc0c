"""The other model as a comparison takes it: as it is, aligned, and under controls."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.matching import align_layers
from hf_moe_lmc.symmetry import MoeSymmetry

from .path import moved

Arrangement = Literal["naive", "random", "units", "aligned"]

ARRANGEMENTS: dict[Arrangement, str] = {
    "naive": "as it is",
    "random": "under a random element of its symmetry group",
    "units": "its units aligned, its experts in their order",
    "aligned": "aligned",
}


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
