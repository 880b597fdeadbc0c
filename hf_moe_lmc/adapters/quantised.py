"""Quantised weights: refused, but for whole experts of a checkpoint, which can be reordered and nothing else."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor, nn

from hf_moe_lmc.errors import UnsupportedArchitectureError
from hf_moe_lmc.moe import SymmetryGroup

from .layouts import PackedExperts
from .spec import MoeLayerSpec

DEQUANTISE = (
    "a quantised model must be dequantised first: load it with dequantize=True in its quantization config "
    "(Mxfp4Config, FineGrainedFP8Config), or call model.dequantize() (bitsandbytes), and save it"
)

# Below the experts' module: a tensor of one expert, or one whose first axis is that of experts (fp8, mxfp4).
OF_ONE_EXPERT = re.compile(r"(\d+)\.(.+)")
OF_ALL_EXPERTS = re.compile(r"(gate_up_proj|up_proj|down_proj)(_blocks|_scales|_scale_inv|_activation_scale|_bias)?")


def refuse_quantised(names: Iterable[str], modules: dict[str, nn.Module]) -> None:
    """Raise `UnsupportedArchitectureError` unless the tensors `names` are plain, and alone in their modules.

    Quantised formats keep scales beside their weights, in one module.
    """
    known = set(names)
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in known):
        for own, tensor in module_tensors(modules[owner], recurse=False):
            name = f"{owner}.{own}"
            if name not in known:
                raise UnsupportedArchitectureError(f"tensor {name} is not known; {DEQUANTISE}")
            refuse_packed(name, tensor)


def refuse_packed(name: str, tensor: Tensor) -> None:
    """Raise `UnsupportedArchitectureError` unless the entries of the tensor `name` are weights as they are."""
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise UnsupportedArchitectureError(f"tensor {name} is {tensor.dtype}; {DEQUANTISE}")


def module_tensors(module: nn.Module, recurse: bool) -> list[tuple[str, Tensor]]:
    """Parameters and buffers of `module` by name."""
    return [*module.named_parameters(recurse=recurse), *module.named_buffers(recurse=recurse)]


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
    of_whole_experts = SymmetryGroup(
        expert_groups=group.expert_groups,
        fixed_experts=group.fixed_experts,
        fixed_units=True,
        router_translation=group.router_translation,
        router_scale=group.router_scale,
        selection_bias_constant=group.selection_bias_constant,
    )
    return replace(spec, experts=experts, shared_experts=None, group=of_whole_experts)


def _packed_experts(name: str, num_experts: int, tensors: Mapping[str, Tensor]) -> PackedExperts:
    stacked, kinds = [], {}
    for tensor in tensors:
        own = tensor.removeprefix(f"{name}.")
        if own == tensor:
            continue
        if match := OF_ONE_EXPERT.fullmatch(own):
            kinds.setdefault(match[2], {})[int(match[1])] = tensor
        elif OF_ALL_EXPERTS.fullmatch(own) and tensors[tensor].shape[:1] == (num_experts,):
            stacked.append(tensor)
        else:
            raise UnsupportedArchitectureError(f"tensor {tensor}: its experts are not known; {DEQUANTISE}")
    for kind, names in kinds.items():
        formats = {(tensors[tensor].dtype, tensors[tensor].shape) for tensor in names.values()}
        if names.keys() != set(range(num_experts)) or len(formats) > 1:
            raise UnsupportedArchitectureError(f"experts {name}: {kind} is not alike in all of them; {DEQUANTISE}")
    if not stacked and not kinds:
        raise UnsupportedArchitectureError(f"experts {name}: none of their tensors is known; {DEQUANTISE}")
    listed = tuple(tuple(names[expert] for expert in range(num_experts)) for names in kinds.values())
    return PackedExperts(name, num_experts, tuple(stacked), listed)
