"""Weights as mappings: module name -> tensor, computed when asked for. Every merge is composed of these transforms.

A state dict, a lazily read checkpoint and a function of other mappings are the same thing here. What is computed layer
by layer hands out each tensor once and then forgets it, so a consumer that asks for every tensor once holds little more
than one layer; asked again, the layer is computed again.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.checkpoints import Checkpoint
from hf_moe_lmc.errors import IncompatiblePairError
from hf_moe_lmc.merging import ExpertStatistics, LayerStatistics, mean_tensor, repaired_bank, repaired_router
from hf_moe_lmc.merging.gauge import Rescaling, rescaling
from hf_moe_lmc.moe import ExpertBank, MoeLayer, Router, UnitScales
from hf_moe_lmc.names import Repair
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation, SignedPermutation
from hf_moe_lmc.workers import each

from .model_record import ModelRecord

Weights = Mapping[str, Tensor]
"""Module name -> tensor."""


def aligned(other: Weights, specs: Sequence[MoeLayerSpec], symmetries: Mapping[str, MoeSymmetry]) -> Weights:
    """`other` with every layer of `specs` under its symmetry; the others, and all else, as they are.

    Entries move and change sign; no weight is rounded.

    Args:
        other: any weights.
        specs: the Mixture-of-Experts layers of `other`.
        symmetries: layer name -> symmetry; layers that it lacks stay, and those of no layer are left out.

    Raises:
        IncompatiblePairError: when a layer is asked for, its sizes are others.
    """

    def compute(spec: MoeLayerSpec) -> dict[str, Tensor]:
        tensors = {name: other[name] for name in spec.tensor_names}
        try:
            return _act(spec, symmetries[spec.name], tensors)
        except ValueError as error:
            raise IncompatiblePairError(f"layer {spec.name}: {error}") from None

    return ByLayer(other, [spec for spec in specs if spec.name in symmetries], compute)


def mean(models: Sequence[Weights], shares: Sequence[float], dtype: torch.dtype | None = None) -> Weights:
    """`sum_i s_i W_i`, tensor by tensor; of two models the point `t = s_1` of the straight line between them.

    Models without a share are not read; the mean of one model is that model, bit for bit. Names and dtypes are those of
    the first model that has a share. See `hf_moe_lmc.merging.mean_tensor`.

    Args:
        models: of the same names and shapes.
        shares: one per model, of sum 1.
        dtype: of the mean where it holds more than that.
    """
    models, shares = _with_shares(models, shares)
    return models[0] if len(models) == 1 else _Mean(models, shares, dtype)


def merged(
    models: Sequence[Weights],
    shares: Sequence[float],
    specs: Sequence[MoeLayerSpec],
    repairs: Sequence[Repair] = (),
    statistics: Mapping[str, LayerStatistics] | None = None,
    dtype: torch.dtype | None = None,
    *,
    gauge: bool = False,
) -> Weights:
    """`mean(models, shares, dtype)` with every layer of `specs` in one gauge and under `repairs`, one after the other.

    Computed in float32 or better, expert by expert, rounded once. A model that has all the share is itself.

    Args:
        models, shares, dtype: as for `mean`; the models are aligned.
        specs: the Mixture-of-Experts layers.
        repairs: in their order.
        statistics: layer name -> its statistics on calibration data; a layer without gets the data-free repairs only.
        gauge: whether models take the free scales of the first that has a share; see `hf_moe_lmc.merging.gauge`. Else
            layers are averaged as they are.
    """
    average = mean(models, shares, dtype)
    models, shares = _with_shares(models, shares)
    if len(models) == 1 or not (repairs or gauge):
        return average
    known = statistics or {}

    def compute(spec: MoeLayerSpec) -> dict[str, Tensor]:
        endpoints = [{name: model[name] for name in spec.tensor_names} for model in reversed(models)][::-1]
        return _merged_layer(spec, endpoints, shares, repairs, known.get(spec.name), dtype, gauge, _is_fresh(models[0]))

    return ByLayer(average, specs, compute)


def verified(weights: Weights, specs: Sequence[MoeLayerSpec], record: ModelRecord, name: str) -> Weights:
    """`weights`, each layer of `specs` compared with what `record` says of it when it is asked for.

    Raises:
        IncompatiblePairError: a layer is not the recorded one; `name` is the model's in the message.
    """

    def compute(spec: MoeLayerSpec) -> dict[str, Tensor]:
        tensors = {name: weights[name] for name in spec.tensor_names}
        record.check(spec, tensors, name)
        return tensors

    return ByLayer(weights, specs, compute)


def with_rows(weights: Weights, rows: Mapping[str, int], further: Weights) -> Weights:
    """`weights`, some tensors of them with their first rows only, or with further rows of `further`.

    Args:
        weights: any.
        rows: name of a tensor -> the number of its rows.
        further: has so many rows.
    """
    return _WithRows(weights, rows, further)


def completed(weights: Weights, lacking: Collection[str], further: Weights) -> Weights:
    """`weights`, with the tensors of `further` under names that are `lacking`."""
    return _Completed(weights, lacking, further) if lacking else weights


def shared(weights: Weights, consumers: int) -> Weights:
    """`weights` for several consumers that each ask for every tensor once: computed once, kept until the last asks."""
    return weights if consumers < 2 else _Shared(weights, consumers)


class DerivedWeights(Mapping[str, Tensor]):
    """Weights under the names of `base`; `__getitem__` computes them."""

    def __init__(self, base: Weights):
        self.base = base

    def __getitem__(self, name: str) -> Tensor:
        return self.base[name]

    def __contains__(self, name: object) -> bool:
        return name in self.base

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)


class ByLayer(DerivedWeights):
    """`base` with the layers of `specs` replaced by `compute(spec)`: module names of the layer -> tensors."""

    def __init__(
        self, base: Weights, specs: Sequence[MoeLayerSpec], compute: Callable[[MoeLayerSpec], dict[str, Tensor]]
    ):
        super().__init__(base)
        self._compute = compute
        self._owners = {name: spec for spec in specs for name in spec.tensor_names}
        self._pending: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._owners:
            return self.base[name]
        if name not in self._pending:
            self._pending = {}  # before the next layer takes memory
            self._pending = self._compute(self._owners[name])
        return self._pending.pop(name)


class _Mean(DerivedWeights):
    """The weighted mean of two models or more."""

    def __init__(self, models: Sequence[Weights], shares: Sequence[float], dtype: torch.dtype | None):
        super().__init__(models[0])
        self._others, self._shares, self._dtype = models[1:], shares, dtype

    def __getitem__(self, name: str) -> Tensor:
        try:
            # Those that are computed layer by layer first: meanwhile they take more memory than they give.
            others = [model[name] for model in self._others]
            tensors = [self.base[name], *others]
        except KeyError:
            raise IncompatiblePairError(f"tensor {name} does not exist in all of the models") from None
        return mean_tensor(name, tensors, self._shares, self._dtype, overwrite=_is_fresh(self.base))


class _WithRows(DerivedWeights):
    """See `with_rows`."""

    def __init__(self, base: Weights, rows: Mapping[str, int], further: Weights):
        super().__init__(base)
        self._rows, self._further = rows, further

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.base[name]
        if name not in self._rows:
            return tensor
        further = self._further[name][len(tensor) : self._rows[name]]
        return torch.cat([tensor[: self._rows[name]], further.to(tensor)])


class _Completed(DerivedWeights):
    """See `completed`; iterates over names of its own only."""

    def __init__(self, base: Weights, lacking: Collection[str], further: Weights):
        super().__init__(base)
        self._lacking, self._further = lacking, further

    def __getitem__(self, name: str) -> Tensor:
        return self._further[name] if name in self._lacking else self.base[name]


class _Shared(DerivedWeights):
    """See `shared`."""

    def __init__(self, base: Weights, consumers: int):
        super().__init__(base)
        self._consumers, self._kept = consumers, dict[str, tuple[Tensor, int]]()

    def __getitem__(self, name: str) -> Tensor:
        tensor, left = self._kept.pop(name, None) or (self.base[name], self._consumers)
        if left > 1:
            self._kept[name] = tensor, left - 1
        return tensor


def _with_shares(models: Sequence[Weights], shares: Sequence[float]) -> tuple[list[Weights], list[float]]:
    used = [(model, share) for model, share in zip(models, shares, strict=True) if share]
    return [model for model, _ in used], [share for _, share in used]


def _is_fresh(weights: Weights) -> bool:
    """Whether every look at `weights` gives memory that nobody else has."""
    return isinstance(weights, Checkpoint) or (isinstance(weights, ByLayer) and _is_fresh(weights.base))


def _act(spec: MoeLayerSpec, symmetry: MoeSymmetry, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a layer under a symmetry; each weight is moved once, straight to its place."""
    layer = spec.read(tensors)
    if symmetry.shape != layer.symmetry_shape:
        raise ValueError(f"a symmetry of sizes {symmetry.shape} cannot act on a layer of sizes {layer.symmetry_shape}")
    if symmetry.is_identity:
        return tensors

    def fill(target: MoeLayer) -> None:
        _move(layer.experts, target.experts, symmetry.experts.index.tolist(), symmetry.units)
        if layer.shared_experts and target.shared_experts and symmetry.shared_units:
            order = symmetry.shared_experts or Permutation.identity(layer.shared_experts.num_experts)
            _move(layer.shared_experts, target.shared_experts, order.index.tolist(), symmetry.shared_units)

    router = layer.router.permute_experts(symmetry.experts) if layer.router else None
    further = layer.reorder_unrouted(symmetry.shared_experts, symmetry.zero_experts).further_rows
    return _write(spec, tensors, tensors, None, router, further, fill)


def _move(source: ExpertBank, target: ExpertBank, order: Sequence[int], units: SignedPermutation) -> None:
    """Fill slot e of `target` with expert `order[e]` of `source`, its units under `units[e]`."""
    if units.is_signed and source.gate_proj is None:
        raise ValueError("units of experts without gate_proj have no free sign")
    targets, sources = target.tensors(), source.tensors()

    def move(part: tuple[str, int]) -> None:
        field, slot = part
        place, tensor = targets[field][slot], sources[field][order[slot]]
        if field == "down_bias":
            place.copy_(tensor)
            return
        axis = 1 if field == "down_proj" else 0
        _take(tensor, units.permutation.index[slot], axis, place)
        if units.is_signed and not field.startswith("gate"):
            signs = units.signs[slot].to(place)
            place.mul_(signs if axis == 1 or place.ndim == 1 else signs[:, None])

    each(move, product(sources, range(len(order))))


def _take(source: Tensor, index: Tensor, axis: int, target: Tensor) -> None:
    """`target <- source.index_select(axis, index)`; on the CPU numpy moves whole words, several times as fast."""
    if source.device.type != "cpu":
        target.copy_(source.index_select(axis, index.to(source.device)))
        return
    word = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[source.itemsize]
    # Without a mode, numpy checks every index, and buffers.
    np.take(source.view(word).numpy(), index.numpy(), axis=axis, out=target.view(word).numpy(), mode="clip")


def _merged_layer(
    spec: MoeLayerSpec,
    endpoints: Sequence[dict[str, Tensor]],
    shares: Sequence[float],
    repairs: Sequence[Repair],
    statistics: LayerStatistics | None,
    dtype: torch.dtype | None,
    gauge: bool,
    overwrite: bool,
) -> dict[str, Tensor]:
    layers, group = [spec.read(tensors) for tensors in endpoints], spec.group
    first, *others = layers
    changes = [Rescaling(None, None, first.router)]
    changes += [rescaling(first, layer) if gauge else Rescaling(None, None, layer.router) for layer in others]
    if not repairs and all(change.keeps(layer) for change, layer in zip(changes, layers, strict=True)):
        return {
            name: mean_tensor(name, [tensors[name] for tensors in endpoints], shares, dtype, overwrite)
            for name in spec.tensor_names
        }

    def fill_bank(
        banks: Sequence[ExpertBank],
        scales: Sequence[UnitScales | None],
        target: ExpertBank,
        scale_degree: int,
        own: ExpertStatistics | None,
    ) -> None:
        places = target.tensors()
        for e in range(target.num_experts):
            alone = [bank.map(lambda tensor, e=e: tensor[e, None]) for bank in banks]
            alone = [bank.rescale(s.expert(e)) if s else bank for bank, s in zip(alone, scales, strict=True)]
            merged = repaired_bank(alone, shares, repairs, scale_degree, own.expert(e) if own else None)
            for field, tensor in merged.tensors().items():
                places[field][e].copy_(tensor[0])

    def fill(target: MoeLayer) -> None:
        own, common = (statistics.experts, statistics.shared_experts) if statistics else (None, None)
        scales, shared_scales = ([getattr(c, name) for c in changes] for name in ("experts", "shared_experts"))
        fill_bank([layer.experts for layer in layers], scales, target.experts, group.unit_scale_degree, own)
        if target.shared_experts:
            banks = [layer.shared_experts for layer in layers if layer.shared_experts]
            fill_bank(banks, shared_scales, target.shared_experts, group.shared_unit_scale_degree, common)

    routers = [change.router for change in changes if change.router]
    router = repaired_router(routers, shares, repairs, group.router_translation, statistics) if routers else None
    rows = [layer.further_rows for layer in layers if layer.further_rows]
    further = repaired_router(rows, shares, (), False) if rows else None
    return _write(spec, endpoints[0], mean(endpoints, shares, dtype), dtype, router, further, fill)


def _write(
    spec: MoeLayerSpec,
    like: Weights,
    rest: Weights,
    dtype: torch.dtype | None,
    router: Router | None,
    further: Router | None,
    fill: Callable[[MoeLayer], None],
) -> dict[str, Tensor]:
    """The tensors of a layer whose experts `fill` writes into new ones.

    Args:
        spec: of the layer.
        like: tensors of its shapes and dtypes.
        rest: gives rows that nothing reads.
        dtype: as for `mean`.
        router, further: its new rows, of the routed experts and those that follow.
        fill: writes into all experts of the layer that it is given.
    """
    new = {name: torch.empty_like(like[name], dtype=_at_least(like[name].dtype, dtype)) for name in spec.tensor_names}
    target = spec.read(new)
    fill(target)
    names = [name for part in spec.parts for name in part.tensor_names]
    banks = [bank for bank in (target.experts, target.shared_experts) if bank]
    owned = {new[name].untyped_storage().data_ptr() for name in names}
    views = [tensor for bank in banks for tensor in bank.tensors().values()]
    whole = sum(tensor.numel() for tensor in views) == sum(new[name].numel() for name in names)
    if whole and all(tensor.untyped_storage().data_ptr() in owned for tensor in views):
        written = {name: new[name] for name in names} | spec.write_router(router, further, rest)
    else:  # experts stored one by one were filled as a copy, and rows of no expert not at all
        written = spec.write(MoeLayer(router, target.experts, target.shared_experts, spec.group, further), rest)
    return {name: tensor.to(new[name].dtype) for name, tensor in written.items()}


def _at_least(own: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    return torch.promote_types(own, dtype) if dtype and own.is_floating_point else own
