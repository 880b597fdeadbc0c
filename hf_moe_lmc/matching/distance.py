"""How far two layers are from one another, and whether they can be compared at all."""

import math
from dataclasses import replace

from hf_moe_lmc.errors import IncompatiblePairError
from hf_moe_lmc.moe import MoeLayer


def layer_distance(reference: MoeLayer, other: MoeLayer) -> float:
    """`sqrt(sum |a - b|^2)` over all tensors; least over router translations where these are symmetries."""
    a, b = (replace(layer, router=layer.router.centred()).tensors() for layer in (reference, other))
    return math.sqrt(sum((a[name] - b[name]).double().square().sum().item() for name in a))


def check_comparable(reference: MoeLayer, other: MoeLayer) -> None:
    """Raise `IncompatiblePairError`, naming the difference, unless both layers have the same parts and sizes."""
    sizes = ("experts", "units per expert", "(number, units) of shared experts")
    for what, a, b in zip(sizes, reference.symmetry_shape, other.symmetry_shape, strict=True):
        if a != b:
            raise IncompatiblePairError(f"{what}: the reference has {a or 'none'}, the other has {b or 'none'}")
    if reference.router.scoring != other.router.scoring:
        raise IncompatiblePairError(f"router scoring: {reference.router.scoring} and {other.router.scoring}")
    shapes_a, shapes_b = (
        {name: tuple(tensor.shape) for name, tensor in layer.tensors().items()} for layer in (reference, other)
    )
    for name in {**shapes_a, **shapes_b}:
        a, b = shapes_a.get(name, "absent"), shapes_b.get(name, "absent")
        if a != b:
            raise IncompatiblePairError(f"{name}: {a} in the reference, {b} in the other")
