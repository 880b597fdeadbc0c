"""Paths between two models: t in [0, 1] -> weights, each tensor computed when asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError
from hf_moe_lmc.merging import Interpolation
from hf_moe_lmc.moe import MoeLayer, act
from hf_moe_lmc.symmetry import MoeSymmetry

Path = Callable[[float], Mapping[str, Tensor]]
"""t in [0, 1] -> the weights of a model under module names; t = 0 is the reference, t = 1 the other end."""


def linear_path(reference: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Path:
    """`t -> (1 - t) reference + t other`; see `hf_moe_lmc.merging.Interpolation`."""
    return lambda t: Interpolation(reference, other, t)


def moved(
    tensors: Mapping[str, Tensor], specs: Sequence[MoeLayerSpec], symmetries: Mapping[str, MoeSymmetry]
) -> Mapping[str, Tensor]:
    """`tensors` with every layer of `specs` under its symmetry (keyed by layer name), layer by layer when asked for.

    Raises:
        IncompatiblePairError: the layers are not those of the symmetries; when asked for a layer, its sizes are not.
    """
    if names := {spec.name for spec in specs} ^ symmetries.keys():
        raise IncompatiblePairError(f"layer {sorted(names)[0]} exists in the model or in the alignment only")

    def rewritten(spec: MoeLayerSpec) -> MoeLayer:
        try:
            return act(symmetries[spec.name], spec.read(tensors))
        except ValueError as error:
            raise IncompatiblePairError(f"layer {spec.name}: {error}") from None

    return Layerwise(tensors, specs, rewritten)


class Layerwise(Mapping[str, Tensor]):
    """`tensors` with every layer of `specs` replaced by `rewrite(spec)`, cast to the dtypes that it has in `tensors`.

    A layer is computed when one of its tensors is asked for, and kept until one of another layer is.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        specs: Sequence[MoeLayerSpec],
        rewrite: Callable[[MoeLayerSpec], MoeLayer],
    ):
        self._tensors, self._rewrite = tensors, rewrite
        self._owners = {name: spec for spec in specs for name in spec.tensor_names}
        self._kept: tuple[str, Mapping[str, Tensor]] = ("", {})

    def __getitem__(self, name: str) -> Tensor:
        spec = self._owners.get(name)
        if spec is None:
            return self._tensors[name]
        if self._kept[0] != spec.name:
            before = {name: self._tensors[name] for name in spec.tensor_names}
            written = spec.write(self._rewrite(spec), before)
            self._kept = spec.name, {name: tensor.to(before[name].dtype) for name, tensor in written.items()}
        return self._kept[1][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def points_of(t: int | Sequence[float]) -> tuple[float, ...]:
    """`t` equally spaced points from 0 to 1, or the given ones.

    Raises:
        BadInputError: there are fewer than three, or the given ones do not ascend from 0 to 1.
    """
    points = tuple(np.linspace(0, 1, max(t, 0)).tolist() if isinstance(t, int) else t)
    if len(points) < 3 or (points[0], points[-1]) != (0, 1) or not all(a < b for a, b in pairwise(points)):
        raise BadInputError(
            f"a path needs three points or more, ascending from 0 to 1, not {t}: its endpoints alone show no barrier"
        )
    return points
