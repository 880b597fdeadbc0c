"""Layers of a quantised checkpoint, whose experts can be reordered and nothing else."""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from hf_moe_lmc.errors import UnsupportedArchitectureError
from hf_moe_lmc.moe import SymmetryGroup

from .packed_experts import PackedExperts
from .refusals import DEQUANTISE, refuse_packed
from .spec import MoeLayerSpec

# Below the experts' module: a tensor of one expert, or one whose first axis is that of experts (fp8, mxfp4).
OF_ONE_EXPERT = re.compile(r"(\d+)\.(.+)")
OF_ALL_EXPERTS = re.compile(r"(gate_up_proj|up_proj|down_proj)(_blocks|_scales|_scale_inv|_activation_scale|_bias)?")


def packed_layer(spec: MoeLayerSpec, tensors: Mapping[str, Tensor]) -> MoeLayerSpec:
    """The layer `spec` of a model before it was quantised, as it is stored after: whole experts can be reordered.

    Args:
        spec: a layer with router.
        tensors: all tensors of the checkpoint, on the meta device.

    Raises:
        UnsupportedArchitectureError: the router is quantised, or experts are not stored apart and alike.
    """
    for field, name in spec.router.tensors if spec.router else ():
        if name not in tensors:
            raise UnsupportedArchitectureError(f"router of {spec.name}: {name} is missing; {DEQUANTISE}")
        if field != "expert_table":
            refuse_packed(name, tensors[name])
    experts, group = _packed_experts(spec.experts.name, spec.num_experts, tensors), spec.group
    known = SymmetryGroup(
        expert_groups=group.expert_groups,
        fixed_experts=group.fixed_experts,
        fixed_units=True,
        router_translation=group.router_translation,
        router_scale=group.router_scale,
        selection_bias_constant=group.selection_bias_constant,
    )
    return replace(spec, experts=experts, shared_experts=None, group=known)


def _packed_experts(name: str, num_experts: int, tensors: Mapping[str, Tensor]) -> PackedExperts:
    stacked, kinds = [], {}
    for tensor in tensors:
        own = tensor.removeprefix(f"{name}.")
        if own == tensor:
            continue
        if found := OF_ONE_EXPERT.fullmatch(own):
            kinds.setdefault(found[2], {})[int(found[1])] = tensor
        elif OF_ALL_EXPERTS.fullmatch(own) and tensors[tensor].shape[:1] == (num_experts,):
            stacked.append(tensor)
        else:
            raise UnsupportedArchitectureError(f"tensor {tensor}: its experts are not known; {DEQUANTISE}")
    for kind, found in kinds.items():
        formats = {(tensors[tensor].dtype, tensors[tensor].shape) for tensor in found.values()}
        if found.keys() != set(range(num_experts)) or len(formats) > 1:
            raise UnsupportedArchitectureError(f"experts {name}: {kind} is not alike in all of them; {DEQUANTISE}")
    if not stacked and not kinds:
        raise UnsupportedArchitectureError(f"experts {name}: none of their tensors is known; {DEQUANTISE}")
    listed = tuple(tuple(found[expert] for expert in range(num_experts)) for found in kinds.values())
    return PackedExperts(name, num_experts, tuple(stacked), listed)
