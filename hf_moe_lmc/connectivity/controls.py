"""Controls of a merge: weights that nothing was aligned for, by which merges that align are judged."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.alignment import ByLayer, Weights, mean
from hf_moe_lmc.merging import repaired_layer, widest_dtype
from hf_moe_lmc.moe import ExpertBank, MoeLayer


def endpoint_experts(
    models: Sequence[Weights], shares: Sequence[float], specs: Sequence[MoeLayerSpec], endpoint: int
) -> Weights:
    """`mean(models, shares)` with the layers of `specs` as one of the models has them, router included.

    The distance to it from a merge is what averaging the layers costs at all: report the mean over all endpoints.

    Args:
        models: of the same names and shapes; not aligned.
        shares: one per model, of sum 1.
        specs: the Mixture-of-Experts layers.
        endpoint: index of the model that gives its layers.
    """
    own = models[endpoint]
    return ByLayer(mean(models, shares), specs, lambda spec: {name: own[name] for name in spec.tensor_names})


def picked_units(
    models: Sequence[Weights], shares: Sequence[float], specs: Sequence[MoeLayerSpec], agreement: float = math.inf
) -> Weights:
    """`mean(models, shares)` with the units of every layer of `specs` picked as `pick_units` does, not averaged.

    Whatever a repair of sizes gains must be more than this, which needs neither an alignment nor data.

    Args:
        models: of the same names and shapes; not aligned.
        shares: one per model, of sum 1.
        specs: the Mixture-of-Experts layers.
        agreement: see `pick_units`.
    """

    def compute(spec: MoeLayerSpec) -> dict[str, Tensor]:
        tensors = [{name: model[name] for name in spec.tensor_names} for model in models]
        layer = pick_units([spec.read(own) for own in tensors], shares, agreement)
        written = spec.write(layer, mean(tensors, shares))
        return {name: tensor.to(tensors[0][name].dtype) for name, tensor in written.items()}

    return ByLayer(mean(models, shares), specs, compute)


def pick_units(layers: Sequence[MoeLayer], shares: Sequence[float], agreement: float = math.inf) -> MoeLayer:
    """The mean of layers, but every unit on which they disagree is that of the one layer in which it is largest.

    Units are paired by their positions. The size of a unit is its share times the norm of all its weights, once
    `|up| = |down|` where it has a free scale. Routers and the biases of down_proj are averaged. Computed in float32 or
    better.

    Args:
        layers: of the same sizes.
        shares: one per layer, of sum 1.
        agreement: the cosine of all weights of a unit from which on two layers agree on it; by default they never do.
    """
    dtype = widest_dtype(*layers)
    layers = [layer.to(dtype) for layer in layers]
    merged, group = repaired_layer(layers, shares), layers[0].group

    def picked(mean: ExpertBank, banks: Sequence[ExpertBank], degree: int) -> ExpertBank:
        return _picked(mean, banks, shares, degree, agreement)

    shared = [layer.shared_experts for layer in layers if layer.shared_experts]
    return replace(
        merged,
        experts=picked(merged.experts, [layer.experts for layer in layers], group.unit_scale_degree),
        shared_experts=picked(merged.shared_experts, shared, group.shared_unit_scale_degree)
        if merged.shared_experts
        else None,
    )


def shuffled_layers(weights: Weights, specs: Sequence[MoeLayerSpec], seed: int = 0) -> Weights:
    """`weights` with the entries of every tensor of the layers of `specs` in a random order.

    Weights of the same sizes with nothing to align: whatever lowers the loss of a merge with them is no alignment.
    """
    generator = torch.Generator().manual_seed(seed)

    def shuffled(tensor: Tensor) -> Tensor:
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        return tensor.flatten()[order].reshape(tensor.shape)

    return {**weights, **{name: shuffled(weights[name]) for spec in specs for name in spec.tensor_names}}


def _picked(
    mean: ExpertBank, banks: Sequence[ExpertBank], shares: Sequence[float], scale_degree: int, agreement: float
) -> ExpertBank:
    units = [_unit_weights(bank, scale_degree) for bank in banks]
    largest = torch.stack([share * own.norm(dim=2) for own, share in zip(units, shares, strict=True)]).argmax(dim=0)
    cosines = [torch.cosine_similarity(a, b, dim=2) for a, b in combinations(units, 2)]
    disagree = torch.stack(cosines).amin(dim=0) < agreement  # [E, F], as `largest`, the number of a bank
    picked = {}
    for field, tensor in mean.tensors().items():
        if field != "down_bias":
            shape = (len(largest), 1, -1) if field == "down_proj" else (*largest.shape, *[1] * (tensor.ndim - 2))
            every = torch.stack([bank.tensors()[field] for bank in banks])
            own = every.take_along_dim(largest.reshape(shape)[None], dim=0)[0]
            picked[field] = torch.where(disagree.reshape(shape), own, tensor)
    return replace(mean, **picked)


def _unit_weights(bank: ExpertBank, scale_degree: int) -> Float[Tensor, "E F d"]:
    bank = bank.balance_units(scale_degree)
    return torch.cat([*bank.signed_unit_terms(), *bank.unsigned_unit_terms()], dim=2)
