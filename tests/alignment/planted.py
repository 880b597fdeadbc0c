"""Scrambled copies of models by symmetries that are known, and the same computed layer by layer in canonical axes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_moe_lmc.adapters import MoeLayerSpec, alignable_layers
from hf_moe_lmc.alignment import aligned
from hf_moe_lmc.merging import repaired_layer
from hf_moe_lmc.merging.gauge import in_gauge_of
from hf_moe_lmc.moe import act
from hf_moe_lmc.symmetry import MoeSymmetry
from tests.layers import derangement

State = dict[str, Tensor]


def planted(model: PreTrainedModel, seed: int = 0) -> dict[str, MoeSymmetry]:
    """A derangement of every layer of `model`."""
    tensors = model.state_dict()
    return {spec.name: derangement(spec.read(tensors), seed) for spec in alignable_layers(model)}


def scrambled(model: PreTrainedModel, symmetries: Mapping[str, MoeSymmetry]) -> PreTrainedModel:
    """A copy of `model` under `symmetries`."""
    copy = type(model)(model.config).eval()
    copy.set_experts_implementation("eager")
    copy.to(model.dtype).load_state_dict(dict(aligned(model.state_dict(), alignable_layers(model), symmetries)))
    return copy


def naive_aligned(state: State, specs: Sequence[MoeLayerSpec], symmetries: Mapping[str, MoeSymmetry]) -> State:
    """`aligned`, every layer read in canonical axes, rewritten there and written back."""
    for spec in specs:
        if spec.name in symmetries:
            state = state | spec.write(act(symmetries[spec.name], spec.read(state)), state)
    return state


def naive_merge(
    states: Sequence[State],
    specs: Sequence[MoeLayerSpec],
    shares: Sequence[float],
    repairs: Sequence[str] = (),
    symmetries: Sequence[Mapping[str, MoeSymmetry]] = (),
    gauge: bool = False,
) -> State:
    """`merged` of the aligned models, whole and in float64.

    Args:
        states: of the reference and the others.
        specs: of all models.
        shares: one per state.
        repairs: in their order.
        symmetries: of every other state; empty if they are aligned.
        gauge: whether they take the free scales of the first.
    """
    wide = [{k: v.double() if v.is_floating_point() else v for k, v in state.items()} for state in states]
    first, *others = wide
    if symmetries:
        others = [naive_aligned(own, specs, found) for own, found in zip(others, symmetries, strict=True)]
    used = [(own, share) for own, share in zip((first, *others), shares, strict=True) if share]
    merged = {
        name: sum(share * own[name] for own, share in used) if tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    }
    if (repairs or gauge) and len(used) > 1:
        for spec in specs:
            layers = [spec.read(own) for own, _ in used]
            layers = [in_gauge_of(layers[0], layer) for layer in layers] if gauge else layers
            merged |= spec.write(repaired_layer(layers, [share for _, share in used], repairs), merged)
    return merged


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether weights are equal bit for bit, and of one dtype."""
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def copied(model: torch.nn.Module) -> State:
    """The weights of a model as they are now."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
