"""Models that stand in one order already, as checkpoints of one run do, so that nothing need be matched."""

from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import MoeLayer

from .pair import CheckedModels

COSINE = 0.9  # of two rows at one place; near 0 of units that are not the same one, -1 where the sign differs
ROWS = 128  # at a time: what is computed of them stays in the cache


def in_order(models: CheckedModels) -> bool:
    """Whether every unit, and every zero expert, has the direction of the reference's at its place, in all models.

    A unit is told by its row of up_proj: it moves, and changes its sign, in all matrices of its expert at once. One
    pass, which ends at the first layer that is in another order.
    """
    for number, spec in enumerate(models.reference.all_layers):
        layer = spec.read(models.reference.read(spec.tensor_names))
        for model in models.others:
            own = model.all_layers[number]
            other = own.read(model.read(own.tensor_names))
            if not all(_same_directions(a, b) for a, b in zip(_rows(layer), _rows(other), strict=True)):
                return False
    return True


def _rows(layer: MoeLayer) -> list[Float[Tensor, "R d"]]:
    """A row for every unit, matrix by matrix, and for every zero expert, which has no other than that of the router."""
    banks = [bank for bank in (layer.experts, layer.shared_experts) if bank]
    zero = layer.further_rows if layer.group.further_rows == "zero experts" else None
    return [*(matrix for bank in banks for matrix in bank.up_proj), *([zero.weight] if zero else [])]


def _same_directions(a: Float[Tensor, "R d"], b: Float[Tensor, "S d"]) -> bool:
    """Whether `<a_i, b_i> >= COSINE |a_i| |b_i|` for every row i."""
    if a.shape != b.shape:
        return False
    for x, y in zip(a.split(ROWS), b.to(a.device).split(ROWS), strict=True):
        x, y = x.float(), y.float()
        if not ((x * y).sum(dim=1) >= COSINE * x.norm(dim=1) * y.norm(dim=1)).all():
            return False
    return True
