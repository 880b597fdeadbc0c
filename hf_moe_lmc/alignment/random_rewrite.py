"""A random symmetric rewrite of a model, for tests and demonstrations."""

import torch

from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.matching import LayerAlignment, layer_distance
from hf_moe_lmc.moe import act

from .alignment import Alignment, LiveModel


def scramble(model: LiveModel, seed: int = 0) -> tuple[LiveModel, Alignment]:
    """Rewrite `model` in place by a random element of its symmetry group; it computes what it computed before.

    No expert and no unit keeps its place, and signs that are free are drawn.

    Args:
        model: rewritten in place, and returned.
        seed: of the random element.

    Returns:
        the model, and the alignment that was applied; its distances are those from the original.

    Raises:
        UnsupportedArchitectureError: a Mixture-of-Experts block is not known.
    """
    generator, tensors, layers = torch.Generator().manual_seed(seed), model.state_dict(), {}
    for spec in alignable_layers(model):
        layer = spec.read(tensors)
        symmetry = layer.group.random_derangement(*layer.symmetry_shape, generator=generator)
        layers[spec.name] = LayerAlignment(symmetry, 0.0, layer_distance(layer, act(symmetry, layer)))
    alignment = Alignment(layers)
    return alignment.apply(model), alignment
