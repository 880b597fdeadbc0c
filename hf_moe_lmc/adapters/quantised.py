"""Quantised weights of a live model: refused. Those of a checkpoint are dequantised before they come here."""

from collections.abc import Iterable

from torch import Tensor, nn

from hf_moe_lmc.errors import UnsupportedArchitectureError

DEQUANTISE = (
    "a live model must hold plain weights: give the folder of its checkpoint instead, or load it with dequantize=True "
    "in its quantization config"
)


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
