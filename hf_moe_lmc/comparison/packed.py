"""Experts of quantised checkpoints, of which only bytes can be compared."""

from collections.abc import Mapping

from torch import Tensor
from xxhash import xxh3_128

from hf_moe_lmc.adapters.layouts import PackedExperts
from hf_moe_lmc.checkpoints import tensor_bytes

from .experts import ExpertComparison, name_slots


def compare_packed_experts(
    layout_a: PackedExperts, a: Mapping[str, Tensor], layout_b: PackedExperts, b: Mapping[str, Tensor]
) -> list[ExpertComparison]:
    """What every quantised expert of B is: one of A bit for bit, scales included, or "changed" in its place.

    Args:
        layout_a, layout_b: which tensors hold the experts.
        a, b: these tensors.
    """
    sources: dict[bytes, list[int]] = {}
    for expert in range(layout_a.num_experts):
        sources.setdefault(_digest(layout_a, a, expert), []).append(expert)
    experts = []
    for slot in range(layout_b.num_experts):
        equal = sources.get(_digest(layout_b, b, slot), [])
        if equal:
            experts.append(ExpertComparison(slot, "identical", slot if slot in equal else equal[0]))
        else:
            experts.append(ExpertComparison(slot, "changed", slot if slot < layout_a.num_experts else None))
    return name_slots(experts)


def _digest(layout: PackedExperts, tensors: Mapping[str, Tensor], expert: int) -> bytes:
    """Of all that is stored of an expert, under the names that do not hold its number."""
    digest = xxh3_128()
    stacked = [(name.removeprefix(layout.name), tensors[name][expert]) for name in layout.stacked]
    listed = [(names[0].removeprefix(layout.name), tensors[names[expert]]) for names in layout.listed]
    for name, tensor in sorted((*stacked, *listed), key=lambda pair: pair[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor.cpu().contiguous()))
    return digest.digest()
