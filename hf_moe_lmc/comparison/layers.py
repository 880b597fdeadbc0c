"""One Mixture-of-Experts layer of B against one of A: experts, shared experts and router."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.moe import ExpertBank, MoeLayer, SymmetryGroup
from hf_moe_lmc.symmetry import Permutation, SignedPermutation

from .experts import ExpertComparison, compare_experts
from .routers import RouterComparison, RouterVerdict, all_rows, compare_routers, nearest_rows

_ENTRIES = 16  # that tell experts apart which are not equal


@dataclass(frozen=True)
class LayerComparison:
    """What became of one layer.

    Args:
        name: module name of the block in B.
        source: its name in A.
        router: what its router rows did; see `RouterComparison`.
        router_change: relative distance of its rows, in the order that the verdict names; None where nothing changed.
        experts: one per slot of B.
        missing: experts of A that no slot of B holds.
        shared_experts: one per shared expert of B, as they are stored.
        num_experts: E of A.
        note: why experts were not compared, in words; None where they were.
        keeps_function: whether all that moved and changed, changed nothing of what the layer computes.
    """

    name: str
    source: str
    router: RouterVerdict
    router_change: float | None
    experts: tuple[ExpertComparison, ...]
    missing: tuple[int, ...]
    shared_experts: tuple[ExpertComparison, ...]
    num_experts: int
    note: str | None = None
    keeps_function: bool = False

    @property
    def sources(self) -> tuple[int | None, ...]:
        """The expert of A that every slot of B holds."""
        return tuple(expert.source for expert in self.experts)

    def to_dict(self) -> dict[str, Any]:
        """Its part of the JSON document."""
        return {
            "name": self.name,
            "router": self.router,
            "experts": [expert.to_dict() for expert in self.experts],
            "missing": list(self.missing),
            "shared_experts": [expert.to_dict() for expert in self.shared_experts],
        }


def compare_layers(
    spec_a: MoeLayerSpec, tensors_a: Mapping[str, Tensor], spec_b: MoeLayerSpec, tensors_b: Mapping[str, Tensor]
) -> tuple[LayerComparison, RouterComparison]:
    """What became of a layer, and of its router.

    Args:
        spec_a, spec_b: where the layers live; a dense one is a single expert.
        tensors_a, tensors_b: their tensors, under module names.
    """
    a, b = spec_a.read(tensors_a), spec_b.read(tensors_b)
    group = b.group if a.router is None else a.group
    if group.product_keys:
        experts, note = _compare_product_keys(a, b), None
    else:
        experts, note = _compare_banks(a.experts, b.experts, group)
    shared_group = SymmetryGroup(unit_signs=group.shared_unit_signs, unit_scale_degree=group.shared_unit_scale_degree)
    shared: list[ExpertComparison] = []
    if b.shared_experts is not None and a.shared_experts is not None:
        shared, shared_note = _compare_banks(a.shared_experts, b.shared_experts, shared_group)
        note = note or shared_note
    elif b.shared_experts is not None:
        shared = [ExpertComparison(slot, "unrelated") for slot in range(b.shared_experts.num_experts)]
    experts, shared = _name_slots(_told_apart(experts, a, b, group)), _name_slots(shared)
    held = {expert.source for expert in experts}
    further = _further_sources(a, b, shared)
    sources = [*(expert.source for expert in experts), *further]
    own = [*range(len(experts)), *range(a.experts.num_experts, a.experts.num_experts + len(further))]
    of_a, of_b = (layer.router and all_rows(layer.router, layer.further_rows) for layer in (a, b))
    router = compare_routers(of_a, of_b, sources, own, group)
    missing = tuple(i for i in range(a.experts.num_experts) if i not in held) if note is None else ()
    layer = LayerComparison(
        name=spec_b.name,
        source=spec_a.name,
        router=router.verdict,
        router_change=router.change,
        experts=tuple(experts),
        missing=missing,
        shared_experts=tuple(shared),
        num_experts=a.experts.num_experts,
        note=note,
        keeps_function=_keeps_function(a, b, group, experts, shared, router, further) and note is None,
    )
    return layer, router


def new_layer(spec: MoeLayerSpec) -> LayerComparison:
    """A layer of B that A does not have."""
    experts = tuple(ExpertComparison(slot, "unrelated") for slot in range(spec.num_experts))
    return LayerComparison(
        spec.name, "", "unrelated", None, experts, (), (), spec.num_experts, note="A has no such layer"
    )


def _compare_banks(a: ExpertBank, b: ExpertBank, group: SymmetryGroup) -> tuple[list[ExpertComparison], str | None]:
    x, y = ({name: tuple(t.shape[1:]) for name, t in bank.tensors().items()} for bank in (a, b))
    if x != y:
        name = min(name for name in x.keys() | y.keys() if x.get(name) != y.get(name))
        note = f"{name} of an expert is {_shape(x.get(name))} in A and {_shape(y.get(name))} in B"
        return [ExpertComparison(slot, "unrelated") for slot in range(b.num_experts)], note
    return compare_experts(a, b, group), None


def _compare_product_keys(a: MoeLayer, b: MoeLayer) -> list[ExpertComparison]:
    """Experts (i, j) that two keys choose: one order of the keys is that of the slots, and of the units in each."""
    order = nearest_rows(a.router, b.router, a.group) if a.router and b.router else []
    if sorted(order) != list(range(a.experts.num_experts)) or a.experts.num_experts != b.experts.num_experts:
        return compare_experts(a.experts, b.experts, a.group)
    slots = Permutation(torch.tensor(order)).inverse()  # the slot of B that holds each expert of A
    units = SignedPermutation.unsigned(Permutation(slots.index.repeat(len(order), 1)))
    experts = compare_experts(a.experts, b.experts.permute_experts(slots).permute_units(units), a.group)
    moved = "in place" if slots.is_identity else "reordered"
    return [
        replace(experts[i], slot=slot, units=moved if experts[i].source is not None else None)
        for slot, i in enumerate(order)
    ]


def _further_sources(a: MoeLayer, b: MoeLayer, shared: Sequence[ExpertComparison]) -> list[int | None]:
    """The rows of A that the router rows after those of routed experts should be: those of their experts."""
    if a.further_rows is None or b.further_rows is None:
        return []
    owner, rows = b.group.further_rows, list[int | None](range(len(b.further_rows.weight)))
    if owner == "shared experts":
        rows = [expert.source for expert in shared]
    elif owner == "zero experts":  # all alike
        rows = [*nearest_rows(a.further_rows, b.further_rows, b.group)]
    return [None if i is None else a.experts.num_experts + i for i in rows]


def _told_apart(
    experts: list[ExpertComparison], a: MoeLayer, b: MoeLayer, group: SymmetryGroup
) -> list[ExpertComparison]:
    """The experts, where A holds one several times, each with the source of which the router row is nearest."""
    if a.router is None or b.router is None or a.router.weight.shape[1] != b.router.weight.shape[1]:
        return experts
    sources, classes = [expert.source for expert in experts], defaultdict[tuple[float, ...], list[int]](list)
    for i, entries in enumerate(a.experts.up_proj[:, :1, :_ENTRIES].flatten(1).tolist()):
        classes[tuple(entries)].append(i)
    for alike in classes.values():
        equal = [alike[0], *(i for i in alike[1:] if _is_same(a.experts, alike[0], i))]
        slots = [j for j, source in enumerate(sources) if source in equal]
        if len(equal) > 1 and slots:
            nearest = nearest_rows(a.router, b.router, group, equal, slots)
            for j, i in zip(slots, nearest, strict=True):
                sources[j] = i
    return [replace(expert, source=source) for expert, source in zip(experts, sources, strict=True)]


def _is_same(experts: ExpertBank, i: int, j: int) -> bool:
    return all(torch.equal(tensor[i], tensor[j]) for tensor in experts.tensors().values())


def _name_slots(experts: Sequence[ExpertComparison]) -> list[ExpertComparison]:
    """Experts in another slot are moved; all but the first slot that hold one expert of A are copies, if near to it."""
    named, held = [], set()
    for expert in experts:
        kind = expert.kind
        if kind in ("identical", "rounded", "changed") and expert.source is not None:
            if expert.source in held and not expert.is_far:
                kind = "copied"
            elif expert.source != expert.slot:
                kind = "moved"
        if not expert.is_far:
            held.add(expert.source)
        named.append(replace(expert, kind=kind))
    return named


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape))


def _keeps_function(
    a: MoeLayer,
    b: MoeLayer,
    group: SymmetryGroup,
    experts: Sequence[ExpertComparison],
    shared: Sequence[ExpertComparison],
    router: RouterComparison,
    further: Sequence[int | None],
) -> bool:
    """Whether the layer computes the same up to rounding of float32."""
    order, shared_order = ([expert.source for expert in side] for side in (experts, shared))
    counts = a.experts.num_experts, a.shared_experts.num_experts if a.shared_experts else 0
    for sources, count in zip((order, shared_order), counts, strict=True):
        if sorted(sources, key=lambda i: -1 if i is None else i) != list(range(count)):
            return False
    is_near = router.verdict in ("unmoved", "with experts") and router.change is None
    return (
        is_near
        and list(router.rows) == [*order, *further]
        and all(_is_unchanged(expert) for expert in (*experts, *shared))
        and _admits(group, [i for i in order if i is not None])
    )


def _is_unchanged(expert: ExpertComparison) -> bool:
    return expert.kind in ("identical", "rounded", "moved") and (expert.change or 0.0) < 1e-6


def _admits(group: SymmetryGroup, order: list[int]) -> bool:
    """Whether the layer admits an order of its experts."""
    if order == sorted(order):
        return True
    if group.fixed_experts:
        return False
    size = len(order) // group.expert_groups
    return all(len({i // size for i in order[start : start + size]}) == 1 for start in range(0, len(order), size))
