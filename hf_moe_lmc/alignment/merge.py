"""Aligned models at one or several points: composed as weights, then written as checkpoints or loaded into a model."""

import math
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_moe_lmc.errors import BadInputError, IncompatiblePairError
from hf_moe_lmc.merging import LayerStatistics
from hf_moe_lmc.names import Repair, Vocabulary
from hf_moe_lmc.symmetry import MoeSymmetry

from .alignment import Alignment, check_known
from .live_weights import load_into
from .opened_model import LoadOptions, OpenedModel, load_model
from .pair import CheckedModels
from .weights import Weights, aligned, completed, merged, shared, verified, with_rows
from .write import Finish, Output, WriteOptions, write_checkpoints

LARGEST_SHARE = 1e6

Alignments = Sequence[Alignment | None]
"""One per model but the reference; None leaves the model as it is."""

Shares = tuple[float, ...]
"""One per model, of sum 1; of two models the point t of the line between them is (1 - t, t)."""


@dataclass(frozen=True)
class MergeRepairs:
    """Repairs of a merge and all that they need.

    Args:
        repairs: in their order.
        statistics: shares -> layer name -> its statistics on calibration data; empty for repairs that need none.
        record: the repairs and the data that they were calibrated on, in JSON values; part of the manifest.
    """

    repairs: tuple[Repair, ...] = ()
    statistics: Mapping[Shares, Mapping[str, LayerStatistics]] = field(default_factory=dict, repr=False)
    record: Mapping[str, Any] = field(default_factory=lambda: {"repairs": []})

    @classmethod
    def without_data(cls, repairs: Sequence[Repair]) -> "MergeRepairs":
        """Repairs that need no data."""
        return cls(tuple(repairs), record={"repairs": list(repairs)})


def shares_at(t: float, extrapolate: bool = False) -> Shares:
    """The shares of two models at t.

    Raises:
        BadInputError: `t` is outside [0, 1], and not to extrapolate.
    """
    if not (0 <= t <= 1 or (extrapolate and math.isfinite(t))):
        raise BadInputError(f"t is {t}; choose a value from 0 (reference) to 1 (other), or allow others: --extrapolate")
    return _within_reason((1 - t, t))


def normalised_shares(shares: Sequence[float] | None, models: int, extrapolate: bool = False) -> Shares:
    """Shares of any unit with sum 1; all the same for None.

    Raises:
        BadInputError: they are not one per model, one is negative and not to extrapolate, or their sum is not positive.
    """
    given = [1.0] * models if shares is None else [float(share) for share in shares]
    kind = "of positive sum" if extrapolate else "not all 0, none negative unless allowed: --extrapolate"
    refusal = BadInputError(f"shares {given} for {models} models; give one per model, {kind}")
    if len(given) != models or not all(map(math.isfinite, given)) or (min(given) < 0 and not extrapolate):
        raise refusal
    exponent = math.frexp(max(map(abs, given)))[1]
    scaled = [math.ldexp(share, -exponent) for share in given]  # exactly; their sum does not overflow
    total = math.fsum(scaled)
    if total <= 0:
        raise refusal
    return _within_reason(tuple(share / total for share in scaled))


def _within_reason(shares: Shares) -> Shares:
    if max(map(abs, shares)) > LARGEST_SHARE:
        raise BadInputError(f"a model has a share of {max(shares, key=abs):.3g} in the sum; choose smaller ones")
    return shares


def check_layers(alignment: Alignment, model: OpenedModel) -> None:
    """Raise `IncompatiblePairError` unless the layers of the alignment are those of the model."""
    check_known(alignment, {spec.name for spec in model.all_layers}, model.model, model.name)
    for name in {spec.name for spec in model.layers} - alignment.layers.keys():
        raise IncompatiblePairError(f"layer {name} of {model.name} is not part of the alignment")


@dataclass(frozen=True)
class Merge:
    """Checked models and their alignments, ready to be merged at any shares.

    Args:
        models: the reference and the others.
        alignments: one per other model.
        check_weights: whether each layer must be the one that its alignment was made for.
        allowed: names of harmful differences that do none here; see `CheckedModels.check_mergeable`.
        vocabulary: tokens of the result, where the models have other numbers of them.

    Raises:
        BadInputError: there are not as many alignments as other models.
        IncompatiblePairError: an alignment is of other layers, or the models differ in more than their weights.
    """

    models: CheckedModels
    alignments: Alignments
    check_weights: bool = True
    allowed: Sequence[str] = ()
    vocabulary: Vocabulary | None = None

    def __post_init__(self) -> None:
        self.models.check_mergeable(self.allowed, self.vocabulary)
        if len(self.alignments) != len(self.models.others):
            raise BadInputError(
                f"{len(self.alignments)} alignments for {len(self.models.others)} other models; give one for each"
            )
        for alignment, other in zip(self.alignments, self.models.others, strict=True):
            if alignment:
                check_layers(alignment, other)

    @property
    def symmetries(self) -> list[Mapping[str, MoeSymmetry]]:
        """Layer name -> symmetry, of every other model."""
        return [alignment.symmetries if alignment else {} for alignment in self.alignments]

    @property
    def in_gauge(self) -> bool:
        """Whether models take the free scales of the first; without any alignment they are averaged as they are."""
        return any(self.alignments)

    def unrelated(self, points: Collection[Shares]) -> str:
        """The models, averaged at some of the points, of which layers hold no expert related to the reference's.

        In words; empty if there are none, or none is known since no alignment was found by matching.
        """
        averaged = [any(0 != shares[i] != 1 for shares in points) for i in range(len(self.models.models))]
        counts = []
        for used, alignment, other in zip(averaged[1:], self.alignments, self.models.others, strict=True):
            verdict = alignment.verdict() if used and alignment else None
            if verdict and (number := verdict.counts.get("unrelated")):
                counts.append(
                    f"{number} of {len(verdict.layers)} layers of {other.name} hold no expert related to the "
                    "reference's: their average computes what neither does"
                )
        return "; ".join(counts)

    def write(
        self,
        folder: Path,
        points: Mapping[str, Shares],
        repairs: MergeRepairs,
        options: WriteOptions,
        finish: Finish = lambda folder, name: None,
    ) -> None:
        """Write the merge at every point into a folder; several are written in one pass over the models.

        Under `accelerate launch` or `torchrun` all processes must call this; they divide the layers of checkpoints.

        Args:
            folder: new; see `write_checkpoints`.
            points: folder in `folder` ("" is `folder` itself) -> shares.
            repairs: of all points.
            options: the form of the checkpoints.
            finish: see `write_checkpoints`.
        """
        outputs = self._outputs(points, repairs, options.dtype)
        write_checkpoints(folder, outputs, self.models.models, options, finish)

    def load(self, shares: Shares, repairs: MergeRepairs, options: LoadOptions | None = None) -> PreTrainedModel:
        """The merge at one point as a model of its own; live models are not changed.

        Args:
            shares: one per model.
            repairs: of the merge.
            options: dtype of the model; and how a checkpoint is held in memory.
        """
        like = self.like(shares)
        model = _load_copy(like, options)
        load_into(model, self.weights(shares, repairs, model.dtype))
        return model

    def weights(self, shares: Shares, repairs: MergeRepairs, dtype: torch.dtype | None = None) -> Weights:
        """The weights of the merge at one point, computed when asked for.

        Args:
            shares: one per model.
            repairs: of the merge.
            dtype: of the weights where it holds more than that of the first model with a share.
        """
        return self._at(self._inputs(consumers=[1] * len(self.models.models)), shares, repairs, dtype)

    def _outputs(
        self, points: Mapping[str, Shares], repairs: MergeRepairs, dtype: torch.dtype | None
    ) -> dict[str, Output]:
        consumers = [sum(bool(shares[i]) for shares in points.values()) for i in range(len(self.models.models))]
        inputs = self._inputs(consumers)
        record: dict[str, Any] = {
            "command": "merge",
            "models": [model.origin for model in self.models.models],
            "alignments": [alignment.digest if alignment else None for alignment in self.alignments],
            **repairs.record,
        }
        if differences := self.models.check_mergeable(self.allowed, self.vocabulary):
            record["allowed_differences"] = {difference.name: difference.text for difference in differences}
        if harmless := [difference.text for difference in self.models.differences if not difference.harmful]:
            record["differences"] = harmless
        if self.models.vocabulary:
            record["vocabulary"] = self.vocabulary
        return {
            name: Output(self._at(inputs, shares, repairs, dtype), self.like(shares), record | {"shares": list(shares)})
            for name, shares in points.items()
        }

    def _inputs(self, consumers: Sequence[int]) -> list[Weights]:
        """The weights of all models, aligned, each for a number of consumers."""
        first, *others = self.models.models
        record = next((alignment.reference for alignment in self.alignments if alignment), None)
        weights = [self._checked(first, record)]
        for other, alignment in zip(others, self.alignments, strict=True):
            own = self._checked(other, alignment.other if alignment else None)
            weights.append(aligned(own, other.all_layers, alignment.symmetries) if alignment else own)
        return [shared(own, number) for own, number in zip(weights, consumers, strict=True)]

    def _checked(self, model: OpenedModel, record: Any) -> Weights:
        if not self.check_weights or record is None:
            return model.tensors
        return verified(model.tensors, model.layers_with(record.digests), record, model.name)

    def _at(
        self, inputs: Sequence[Weights], shares: Shares, repairs: MergeRepairs, dtype: torch.dtype | None
    ) -> Weights:
        specs, statistics = self.models.reference.all_layers, repairs.statistics.get(shares)
        like = self.like(shares)
        # Tensors that Transformers ignores, such as further layers that a fine-tune has lost.
        carried = [{*like.carried} - {*model.carried} for model in self.models.models]
        inputs = [completed(own, names, like.tensors) for own, names in zip(inputs, carried, strict=True)]
        if self.models.vocabulary:
            rows = {name: len(like.on_meta[name]) for name in self.models.vocabulary}
            inputs = [with_rows(own, rows, like.tensors) for own in inputs]
        # Of a difference of two models, both must keep their scales.
        gauge = self.in_gauge and min(shares) >= 0
        return merged(inputs, shares, specs, repairs.repairs, statistics, dtype, gauge=gauge)

    def like(self, shares: Shares) -> OpenedModel:
        """The model that the merge is like: the first with a share, so that at t = 1 it is the other model.

        Of several vocabularies, the first that has the tokens of the result.
        """
        models = [model for model, share in zip(self.models.models, shares, strict=True) if share]
        if not self.models.vocabulary:
            return models[0]
        extreme = min if self.vocabulary == "common" else max
        return extreme(models, key=lambda model: len(model.on_meta[self.models.vocabulary[0]]))


def load_aligned(
    model: OpenedModel, alignment: Alignment, options: LoadOptions | None = None, check_weights: bool = True
) -> PreTrainedModel:
    """A model of its own, rewritten by an alignment; arguments as for `write_aligned` and `load_model`."""
    loaded = _load_copy(model, options)
    load_into(loaded, _aligned(model, alignment, check_weights))
    return loaded


def write_aligned(
    model: OpenedModel,
    alignment: Alignment,
    folder: Path,
    options: WriteOptions,
    check_weights: bool = True,
    finish: Finish = lambda folder, name: None,
) -> None:
    """Write a checkpoint, rewritten by an alignment, to a new folder; it computes what it computed before.

    Args:
        model: of the class that the alignment was made for.
        alignment: of the model to a reference.
        folder, options, finish: see `write_checkpoints`.
        check_weights: whether each layer must be the one that the alignment was made for.

    Raises:
        IncompatiblePairError: the alignment was made for another model.
        OutputError: the folder may not be written.
    """
    record = {"command": "apply", "models": [model.origin], "alignments": [alignment.digest]}
    output = Output(_aligned(model, alignment, check_weights), model, record)
    write_checkpoints(folder, {"": output}, [model], options, finish)


def _aligned(model: OpenedModel, alignment: Alignment, check_weights: bool) -> Weights:
    check_layers(alignment, model)
    weights = model.tensors
    if check_weights and alignment.other:
        weights = verified(weights, model.layers_with(alignment.other.digests), alignment.other, model.name)
    return aligned(weights, model.all_layers, alignment.symmetries)


def _load_copy(model: OpenedModel, options: LoadOptions | None) -> PreTrainedModel:
    """The model of a checkpoint, or a copy of a live model, in the dtype of `options`."""
    if model.source is not None:
        return load_model(model, options)
    copy, dtype = deepcopy(load_model(model)), (options or {}).get("dtype") or "auto"
    if dtype == "auto":
        return copy
    copy.config.dtype = wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return cast(PreTrainedModel, nn.Module.to(copy, wanted))
