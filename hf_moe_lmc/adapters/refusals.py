"""What is refused by name, and why: it would be merged silently wrong."""

from collections.abc import Iterable

from torch import Tensor, nn

from hf_moe_lmc.errors import UnsupportedArchitectureError

DEQUANTISE = (
    "a quantised model must be dequantised first: load it with dequantize=True in its quantization config "
    "(Mxfp4Config, FineGrainedFP8Config), or call model.dequantize() (bitsandbytes), and save it"
)


def refuse_adapter(name: str, module: nn.Module) -> None:
    """Raise `UnsupportedArchitectureError` if `module` (module name `name`) is a PEFT adapter's."""
    if type(module).__module__.startswith("peft.tuners."):
        raise UnsupportedArchitectureError(
            f"layer {name}: a PEFT {type(module).__name__}; merge the adapter first (merge_and_unload)"
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


def refuse_tied(names: Iterable[str], model: nn.Module) -> None:
    """Raise `UnsupportedArchitectureError` if a tensor of `names` has a second name: a rewrite would move it twice."""
    others: dict[int, list[str]] = {}
    for tensors in (model.named_parameters, model.named_buffers):
        for name, tensor in tensors(remove_duplicate=False):
            others.setdefault(id(tensor), []).append(name)
    known = set(names)
    for tied in others.values():
        if len(tied) > 1 and known & set(tied):
            raise UnsupportedArchitectureError(
                f"tensor {tied[0]} is tied to {tied[1]}; what suits one layer breaks the other: untie them first"
            )


def module_tensors(module: nn.Module, recurse: bool) -> list[tuple[str, Tensor]]:
    """Parameters and buffers of `module` by name."""
    return [*module.named_parameters(recurse=recurse), *module.named_buffers(recurse=recurse)]
