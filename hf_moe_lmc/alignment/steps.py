"""How a checkpoint is cut into pieces that are read, computed, written and forgotten one after the other."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hf_moe_lmc.adapters import MoeLayerSpec

STEP_BYTES = 64 * 2**20  # small tensors are taken together up to here


@dataclass(frozen=True)
class Step:
    """Tensors that are rewritten together.

    Args:
        name: of the layer, or of the first tensor.
        names: module names of the tensors.
        layers: the Mixture-of-Experts layers that they make up; none for other tensors.
        nbytes: their size in the reference.
    """

    name: str
    names: tuple[str, ...]
    layers: tuple[MoeLayerSpec, ...]
    nbytes: int


def cut_steps(
    sizes: Mapping[str, int], layers: Sequence[MoeLayerSpec], groups: Iterable[Sequence[str]]
) -> tuple[Step, ...]:
    """The finest cut that keeps every layer, and every group of tensors stored in one, in one piece.

    Args:
        sizes: module name -> bytes, in the order of the checkpoint.
        layers: the Mixture-of-Experts layers.
        groups: module names that belong together.
    """
    part = {name: name for name in sizes}

    def root(name: str) -> str:
        while part[name] != name:
            part[name] = name = part[part[name]]
        return name

    for first, *others in [*groups, *([name for name in layer.tensor_names if name in part] for layer in layers)]:
        for name in others:
            part[root(name)] = root(first)
    pieces: dict[str, list[str]] = {}
    for name in sizes:
        pieces.setdefault(root(name), []).append(name)
    layers_of: dict[str, list[MoeLayerSpec]] = {}
    for layer in layers:
        layers_of.setdefault(root(layer.tensor_names[0]), []).append(layer)
    steps, loose = [], []

    def flush() -> None:
        if loose:
            steps.append(Step(loose[0], tuple(loose), (), sum(sizes[name] for name in loose)))
            loose.clear()

    for key, names in pieces.items():
        size = sum(sizes[name] for name in names)
        if key in layers_of:
            flush()
            steps.append(Step(layers_of[key][0].name, tuple(names), tuple(layers_of[key]), size))
        else:
            if sum(sizes[name] for name in loose) + size > STEP_BYTES:
                flush()
            loose.extend(names)
    flush()
    return tuple(steps)
