"""Models that stand in one order already, as checkpoints of one run do, so that nothing need be matched."""

import torch
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank

from .pair import CheckedModels

COSINE = 0.9  # of two units at one place; near 0 of units that are not the same one, less where a free scale doubled


def in_order(models: CheckedModels) -> bool:
    """Whether every unit of every expert has the direction of the reference's at its place, in all models.

    One pass over the weights of experts, without products of matrices; it ends at the first layer that is in another
    order.
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
    """Whether `<a_i, b_i> >= COSINE |a_i| |b_i|` for every unit i, of all its rows together."""
    x, y = a.tensors(), b.tensors()
    if any(x[name].shape != tensor.shape for name, tensor in y.items()):
        return False
    for expert in range(a.num_experts):
        products = [_products(name, x[name][expert], y[name][expert]) for name in x if name != "down_bias"]
        dots, squares, other_squares = torch.stack(products).sum(dim=0)
        if not (dots >= COSINE * (squares * other_squares).sqrt()).all():
            return False
    return True


def _products(name: str, a: Tensor, b: Tensor) -> Tensor:
    """`<a_i, b_i>`, `|a_i|^2` and `|b_i|^2` of every unit."""
    a, b = a.float(), b.to(a.device).float()
    own = torch.stack([x * y for x, y in ((a, b), (a, a), (b, b))])
    return own if a.ndim == 1 else own.sum(dim=1 if name == "down_proj" else 2)
