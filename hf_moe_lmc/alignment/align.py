"""Aligning one model to another."""

from collections.abc import Mapping

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor, nn

from hf_moe_lmc.adapters import MoeLayerSpec, alignable_layers
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError
from hf_moe_lmc.matching import ExpertOrder, align_layers
from hf_moe_lmc.moe import MoeLayer

from .alignment import Alignment


def align(reference: nn.Module, other: nn.Module, expert_order: ExpertOrder = "gate") -> Alignment:
    """Weight matching of two models: per layer the symmetry that brings `other` close to `reference`.

    Neither model is changed; `Alignment.apply` rewrites `other`. Needs no data.

    Args:
        reference: stays as it is.
        other: a model of the same class, experts and units in any order.
        expert_order: how experts are matched; see `hf_moe_lmc.matching.match_experts`.

    Raises:
        IncompatiblePairError: the models differ in class, or a layer differs in kind or size.
        UnsupportedArchitectureError: a Mixture-of-Experts block is not known.
        BadInputError: a weight is NaN or infinite.
    """
    if type(reference) is not type(other):
        raise IncompatiblePairError(
            f"the reference is a {type(reference).__name__}, the other a {type(other).__name__}; "
            "give two models of one class"
        )
    specs, other_specs = alignable_layers(reference), alignable_layers(other)
    if names := {spec.name for spec in specs} ^ {spec.name for spec in other_specs}:
        raise IncompatiblePairError(f"layer {sorted(names)[0]} is a Mixture of Experts in one of the models only")
    tensors, other_tensors = reference.state_dict(), other.state_dict()
    layers = {}
    for spec, other_spec in tqdm(list(zip(specs, other_specs, strict=True)), desc="aligning", unit="layer"):
        a, b = _read_finite(spec, tensors), _read_finite(other_spec, other_tensors)
        try:
            layers[spec.name] = align_layers(a, b, expert_order)
        except IncompatiblePairError as error:
            raise IncompatiblePairError(f"layer {spec.name}: {error}") from None
    return Alignment(layers, expert_order)


def _read_finite(spec: MoeLayerSpec, tensors: Mapping[str, Tensor]) -> MoeLayer:
    layer = spec.read(tensors)
    for name, tensor in layer.tensors().items():
        if not torch.isfinite(tensor).all():
            raise BadInputError(f"layer {spec.name}: {name} holds NaN or infinite values")
    return layer
