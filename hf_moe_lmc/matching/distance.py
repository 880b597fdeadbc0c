"""How far two layers are from one another, and whether they can be compared at all."""

import math
from dataclasses import fields

from hf_moe_lmc.errors import IncompatiblePairError
from hf_moe_lmc.moe import MoeLayer, SymmetryGroup


def layer_distance(reference: MoeLayer, other: MoeLayer) -> float:
    """`sqrt(sum |a - b|^2)` over all tensors; least over translations where these are symmetries."""
    a, b = reference.in_gauge().tensors(), other.in_gauge().tensors()
    return math.sqrt(sum((a[name] - b[name]).double().square().sum().item() for name in a))


def check_comparable(reference: MoeLayer, other: MoeLayer) -> None:
    """Raise `IncompatiblePairError`, naming the difference, unless both layers have the same parts and sizes."""
    if (reference.router is None) != (other.router is None):
        raise IncompatiblePairError("a Mixture of Experts in one of the models, dense in the other")
    sizes = ("experts", "units per expert", "(number, units) of shared experts")
    for what, a, b in zip(sizes, reference.symmetry_shape, other.symmetry_shape, strict=True):
        if a != b:
            raise IncompatiblePairError(f"{what}: the reference has {a or 'none'}, the other has {b or 'none'}")
    for field in fields(SymmetryGroup):
        a, b = getattr(reference.group, field.name), getattr(other.group, field.name)
        if a != b:
            raise IncompatiblePairError(f"symmetry {field.name}: {a} in the reference, {b} in the other")
    shapes_a, shapes_b = (
        {name: tuple(tensor.shape) for name, tensor in layer.tensors().items()} for layer in (reference, other)
    )
    for name in {**shapes_a, **shapes_b}:
        a, b = shapes_a.get(name, "absent"), shapes_b.get(name, "absent")
        if a != b:
            raise IncompatiblePairError(f"{name}: {a} in the reference, {b} in the other")
