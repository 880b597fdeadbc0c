"""The straight line from one model to another that is aligned on the way."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.errors import IncompatiblePairError
from hf_moe_lmc.merging import interpolate_, interpolate_experts, interpolate_router
from hf_moe_lmc.moe import ExpertBank
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation, SignedPermutation


@runtime_checkable
class RepairedLine(Protocol):
    """The straight line under repairs that more than weights went into."""

    @property
    def record(self) -> Mapping[str, Any]:
        """What went into them, in JSON values; part of the manifest of a merge."""
        ...

    def interpolate_(
        self,
        reference: dict[str, Tensor],
        other: Mapping[str, Tensor],
        layers: Sequence[MoeLayerSpec],
        symmetries: Mapping[str, MoeSymmetry],
        t: float,
    ) -> None:
        """As `interpolate_aligned_`, with the layers repaired."""
        ...


def interpolate_aligned_(
    reference: dict[str, Tensor],
    other: Mapping[str, Tensor],
    layers: Sequence[MoeLayerSpec],
    symmetries: Mapping[str, MoeSymmetry],
    t: float,
    keep_norms: bool = False,
) -> None:
    """`reference <- (1 - t) reference + t (symmetries . other)`, in place, expert by expert.

    No aligned copy of a layer is made, so memory beyond the two models is that of one expert. Equals
    `interpolate(reference, apply_symmetries(other, layers, symmetries), t)` bit for bit, but for tensors of experts
    that are never chosen, which stay the reference's.

    Args:
        reference, other: tensors under module names; those of `reference` are overwritten.
        layers: the Mixture-of-Experts layers among them.
        symmetries: layer name -> what aligns it.
        t: in [0, 1].
        keep_norms: give units and router rows their interpolated norms back; see `preserve_norms`.

    Raises:
        IncompatiblePairError: names, shapes or values that are not floating point differ, or a symmetry does not fit.
    """
    if unpaired := sorted(reference.keys() ^ other.keys()):
        owner = "reference" if unpaired[0] in reference else "other"
        raise IncompatiblePairError(f"tensor {unpaired[0]} exists in the {owner} model only")
    done: set[str] = set()
    for spec in layers:
        _interpolate_layer_(spec, reference, other, symmetries[spec.name], t, keep_norms)
        done.update(spec.tensor_names)
    for name in reference.keys() - done:
        interpolate_(name, reference[name], other[name], t)


def _interpolate_layer_(
    spec: MoeLayerSpec,
    reference: dict[str, Tensor],
    other: Mapping[str, Tensor],
    symmetry: MoeSymmetry,
    t: float,
    keep_norms: bool,
) -> None:
    a, b = spec.read(reference), spec.read(other)
    if not symmetry.shape == a.symmetry_shape == b.symmetry_shape:
        raise IncompatiblePairError(
            f"layer {spec.name}: a symmetry of sizes {symmetry.shape} for layers of sizes {a.symmetry_shape} and "
            f"{b.symmetry_shape}"
        )
    group = a.group
    if a.router and b.router:
        moved = b.router.permute_experts(symmetry.experts)
        kept = interpolate_router(a.router, moved, t, group.router_translation) if keep_norms else None
        for name, tensor in spec.write_router(moved, other).items():
            interpolate_(name, reference[name], tensor, t)
        for name, tensor in spec.write_router(kept, reference).items():
            reference[name].copy_(tensor)
    degree = group.unit_scale_degree if keep_norms else None
    _interpolate_bank_(spec.name, a.experts, b.experts, symmetry.experts, symmetry.units, t, degree)
    if a.shared_experts and b.shared_experts and symmetry.shared_units:
        stay = Permutation.identity(a.shared_experts.num_experts)
        degree = group.shared_unit_scale_degree if keep_norms else None
        _interpolate_bank_(spec.name, a.shared_experts, b.shared_experts, stay, symmetry.shared_units, t, degree)
    for layout, bank in zip(spec.parts, (a.experts, a.shared_experts), strict=False):
        # Experts that are stored one by one were read as a copy.
        if bank and not _are_views(bank, reference):
            for name, tensor in layout.write(bank).items():
                reference[name].copy_(tensor)


def _interpolate_bank_(
    name: str,
    a: ExpertBank,
    b: ExpertBank,
    experts: Permutation,
    units: SignedPermutation,
    t: float,
    degree: int | None,
) -> None:
    """Expert by expert; with a `degree` (`SymmetryGroup.unit_scale_degree`), units get their norms back."""
    targets = a.tensors()
    for slot, expert in enumerate(experts.index.tolist()):
        own = SignedPermutation(Permutation(units.permutation.index[slot, None]), units.signs[slot, None])
        moved = b.map(lambda tensor, expert=expert: tensor[expert, None]).permute_units(own)
        if degree is not None:
            fixed = a.map(lambda tensor, slot=slot: tensor[slot, None])
            moved = interpolate_experts(fixed, moved, t, degree)
        for field, tensor in moved.tensors().items():
            if degree is None:
                interpolate_(f"{name}: {field}", targets[field][slot], tensor[0], t)
            else:
                targets[field][slot].copy_(tensor[0])


def _are_views(bank: ExpertBank, tensors: Mapping[str, Tensor]) -> bool:
    owned = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    return all(tensor.untyped_storage().data_ptr() in owned for tensor in bank.tensors().values())
