"""Models that stand in one order already, as checkpoints of one run do, so that nothing need be matched."""

from hf_moe_lmc.moe import ExpertBank

from .pair import CheckedModels

COSINE = 0.9  # of two rows at one place; near 0 of units that are not the same one, -1 where the sign differs


def in_order(models: CheckedModels) -> bool:
    """Whether every unit of every expert has the direction of the reference's at its place, in all models.

    Told by its row of up_proj: a unit moves, and changes its sign, in all matrices of its expert at once. One pass,
    which ends at the first layer that is in another order.
    """
    for number, spec in enumerate(models.reference.layers):
        layer = spec.read(models.reference.read(spec.tensor_names))
        for model in models.others:
            own = model.layers[number]
            other = own.read(model.read(own.tensor_names))
            banks = [(layer.experts, other.experts), (layer.shared_experts, other.shared_experts)]
            if not all(_same_directions(a, b) for a, b in banks if a and b):
                return False
    return True


def _same_directions(a: ExpertBank, b: ExpertBank) -> bool:
    """Whether `<a_i, b_i> >= COSINE |a_i| |b_i|` for the row i of every unit."""
    if a.up_proj.shape != b.up_proj.shape:
        return False
    for x, y in zip(a.up_proj, b.up_proj.to(a.up_proj.device), strict=True):
        x, y = x.float(), y.float()
        if not ((x * y).sum(dim=1) >= COSINE * x.norm(dim=1) * y.norm(dim=1)).all():
            return False
    return True
