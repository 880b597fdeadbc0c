"""The orchestrator: models, their alignment, and every workflow on them. The command line and the demo call it."""

from __future__ import annotations  # `help` shows names of types instead of all that they stand for

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast, get_args

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.utils import logging

from .alignment import (
    Alignment,
    AlignmentConfig,
    Alignments,
    CheckedModels,
    Finish,
    LoadOptions,
    Merge,
    MergeRepairs,
    Model,
    MutualAlignment,
    OpenedModel,
    Plan,
    Resources,
    Shares,
    WriteOptions,
    accelerator_of_all,
    align_into,
    align_models,
    aligned,
    in_order,
    load_aligned,
    load_model,
    normalised_shares,
    open_model,
    open_models,
    plan_alignment,
    plan_writing,
    processes,
    shares_at,
    temporarily_loaded,
    write_aligned,
)
from .alignment.live_weights import OnDevice
from .alignment.merge import check_layers
from .alignment.plan import both
from .checkpoints import HubOptions, check_output
from .connectivity import (
    Calibrated,
    CalibrationData,
    PathReport,
    PathSettings,
    calibrate_repairs,
    evaluate_path,
    points_of,
)
from .errors import BadInputError, IncompatiblePairError, check_choice
from .hub import push_alignment, push_folder, write_card
from .merging import REPAIRS, needs_data
from .names import Dtype, ExpertOrder, Layout, Quantisation, Repair, Variant, Vocabulary
from .progress import announce
from .short_help import ShortHelp

if TYPE_CHECKING:
    from accelerate import Accelerator
    from evaluate import EvaluationModule

Batches = CalibrationData | Iterable[Mapping[str, Tensor]]
GivenAlignment = Alignment | MutualAlignment | Sequence[Alignment | None] | AlignmentConfig | ExpertOrder | None
"""An alignment, one per other model; or the settings (or only the expert order) to align with first; None is "auto"."""

Merged = Path | PreTrainedModel | list[PreTrainedModel]
"""The folder of a merge that was written; else a model, or one for each of several t."""

POINTS = 11

logger = logging.get_logger(__name__)


class MergeOptions(LoadOptions, total=False):
    """Keywords of every merge.

    Args:
        shares: one per model, in any unit, instead of t.
        repairs: by name, one after the other; "auto" chooses them on calibration data; see
            `hf_moe_lmc.merging.REPAIRS`.
        calibration: batches for repairs that need data, the same as `evaluate` was given, never those evaluated on.
        extrapolate: whether t may lie outside [0, 1], and shares be negative, as for `A + (B - base)`.
        layout: of the written checkpoint: "kept", "original" or "fused".
        quantise: "fp8" writes linears and experts, routers aside, in blocks with a scale each, as DeepSeek-V3 has them.
        dtype: of the result; by default that of the first model that has a share.
        overwrite: whether an earlier output of this package may be replaced.
        allow_other_weights: whether the models may hold other weights than the alignment was made for.
        force: whether to merge models of which the verdict calls layers unrelated; else they are refused.
        device: where layers are matched, such as "cuda:1".
        memory: bytes that one layer of both models, and all that is computed from it, may take.
        allow_difference: names of fields of config.json, or of tokenizer files, that differ and would be refused, but
            that you know to do no harm.
        vocabulary: of models with other numbers of tokens, of which one extends the other: "common", the tokens that
            all have, or "union", with the further tokens as they are; the result has the configuration and the
            tokenizer of the model that has these tokens.
    """

    shares: Sequence[float] | None
    repairs: Sequence[Repair] | Literal["auto"]
    calibration: Batches
    extrapolate: bool
    layout: Layout
    quantise: Quantisation | None
    overwrite: bool
    allow_other_weights: bool
    force: bool
    device: str | torch.device | None
    memory: int | None
    allow_difference: Sequence[str]
    vocabulary: Vocabulary | None


class Keywords(MergeOptions, HubOptions, total=False):
    """Keywords of a merge, and of where its models are: revision, subfolder, token, cache_dir, local_files_only."""


@dataclass(frozen=True, eq=False)
class MoeAligner(metaclass=ShortHelp):
    """Two Mixture-of-Experts models or more of one class, checked to fit.

        aligner = MoeAligner.from_pretrained("A", "B")
        alignment = aligner.align()
        aligner.merge(alignment, t=0.5, output="merged")

    Args:
        models: the reference, which stays as it is (t = 0), and those that get aligned to it.
    """

    models: CheckedModels

    @classmethod
    def from_pretrained(cls, reference: Model, *others: Model, **hub: Unpack[HubOptions]) -> "MoeAligner":
        """Open and compare models: folders, repositories on the Hub (`org/model@revision`), or live models.

        Args:
            reference, others: of any class of Transformers that holds known Mixture-of-Experts layers; a
                `Pretrained("org/model", revision=...)` has keywords of its own.
            hub: revision, subfolder, token, cache_dir, local_files_only of all models.

        Raises:
            IncompatiblePairError: classes, layers or tensors differ.
            BadInputError, UnsupportedArchitectureError, HubError: one of them cannot be used.
        """
        return cls(open_models([reference, *others], hub))

    def align(
        self,
        config: AlignmentConfig | ExpertOrder | None = None,
        *,
        output: str | Path | None = None,
        overwrite: bool = False,
        device: str | torch.device | None = None,
        memory: int | None = None,
    ) -> Alignment | MutualAlignment:
        """Match experts and units of every other model to those of the reference; see `hf_moe_lmc.align`."""
        settings, resources = AlignmentConfig.of(config), Resources(device, memory)
        for difference in self.models.harmful:
            logger.warning_once(f"{difference.text}; a merge needs that to be allowed")
        if output is None:
            return align_models(self.models, settings, resources)
        if len(self.models.others) > 1:
            raise BadInputError("one folder holds the alignment of two models; align each pair into its own")
        return align_into(Path(output), self.models, settings, resources, overwrite)

    def merge(
        self,
        alignment: GivenAlignment = None,
        t: float | Sequence[float] | None = None,
        *,
        output: str | Path | None = None,
        **options: Unpack[MergeOptions],
    ) -> Merged:
        """Average the aligned models, in memory or into the folder `output`; see `hf_moe_lmc.merge`."""
        check_merge(self, t, output=output, **options)
        points, write = _points(len(self.models.models), t, options), _write_options(options)
        merge = _aligned_merge(self.models, alignment, options)
        _refuse_unrelated(merge, points, options)
        repairs = _repairs(merge, list(points.values()), options)
        if output is None:
            models = [merge.load(shares, repairs, _load_options(options)) for shares in points.values()]
            return models[0] if "" in points else models
        merge.write(Path(output), points, repairs, write, _card(merge.alignments, self.models.models))
        return Path(output)

    def evaluate(
        self,
        alignment: Alignment | AlignmentConfig | ExpertOrder | None,
        data: DataLoader[Any],
        points: int = POINTS,
        *,
        t: Sequence[float] | None = None,
        calibration: Batches = (),
        variants: Sequence[Variant] = PathSettings.variants,
        repairs: Sequence[Repair | Literal["auto"]] = PathSettings.repairs,
        metrics: "Sequence[EvaluationModule]" = (),
        memory: int = 0,
        seed: int = 0,
        allow_difference: Sequence[str] = (),
        accelerator: "Accelerator | None" = None,
        **load: Unpack[LoadOptions],
    ) -> PathReport:
        """Measure loss (nats), accuracy and routing along the path of two models, naive, aligned and in controls.

        Args:
            alignment: of the pair; or how to align first.
            data: batches of the model's arguments and `labels`, in a fixed order.
            points: so many values of t, equally spaced from 0 to 1; or `t` itself.
            calibration: batches that are not among `data`, for repairs and temperatures.
            variants, repairs, metrics, memory, seed: see `hf_moe_lmc.connectivity.PathSettings`.
            allow_difference: as for `merge`.
            accelerator: the processes and their device; None makes one.
            load: dtype, device_map and the like of the model that is evaluated.
        """
        places, pair = points_of(points, t), self.models
        settings = PathSettings(variants, repairs, metrics, seed=seed, memory=memory)
        data_for_repairs = CalibrationData.of(calibration)
        pair.check_mergeable(allow_difference)
        if len(pair.others) != 1:
            raise BadInputError(f"a path has two models, not {len(pair.models)}")
        if isinstance(alignment, Alignment):
            check_layers(alignment, pair.others[0])
        else:
            asked = "aligned" in variants
            alignment = cast(Alignment, self.align(alignment)) if asked else Alignment({})
        model = load_model(pair.reference, load)
        return evaluate_path(pair, model, alignment, data, places, data_for_repairs, settings, accelerator)


def align(
    reference: Model,
    other: Model | Sequence[Model],
    config: AlignmentConfig | ExpertOrder | None = None,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    device: str | torch.device | None = None,
    memory: int | None = None,
    **hub: Unpack[HubOptions],
) -> Alignment | MutualAlignment:
    """Match experts and units by weight: the rewrite of every other model that brings it close to the reference.

    `align("A", "B")` needs no data and changes neither model. Checkpoints are read layer by layer, and may be larger
    than memory; under `accelerate launch` or `torchrun` the processes divide the layers.

    Args:
        reference, other: folders, repositories on the Hub (`org/model@revision`), or live models.
        config: the expert order ("auto", "gate", "gram", "joint", "units"), or an `AlignmentConfig`.
        output: a new folder for the alignment of two models; killed and called again, it goes on where it was.
        overwrite: whether an earlier output may be replaced.
        device: where layers are matched; by default a GPU with room for the largest layer, else the CPU.
        memory: bytes that one layer of both models, and all that is computed from it, may take.
        hub: revision, subfolder, token, cache_dir, local_files_only.

    Returns:
        the `Alignment` of two models, the `MutualAlignment` of several.

    Raises:
        IncompatiblePairError, UnsupportedArchitectureError, HubError: as `MoeAligner.from_pretrained`.
        BadInputError: the same; or a weight is NaN or infinite, or memory does not suffice.
        OutputError: the folder may not be written.
    """
    aligner = MoeAligner.from_pretrained(reference, *_listed(other), **hub)
    return aligner.align(config, output=output, overwrite=overwrite, device=device, memory=memory)


def merge(
    reference: Model,
    other: Model | Sequence[Model],
    alignment: GivenAlignment = None,
    t: float | Sequence[float] | None = None,
    *,
    output: str | Path | None = None,
    **options: Unpack[Keywords],
) -> Merged:
    """Average aligned models: `sum_i s_i (alignment_i . model_i)`; of two `(1 - t) reference + t other`.

    The first model with a share gives the result its configuration, generation settings, dtype and tokenizer: at t = 1
    the result is the other model, rewritten.

    Args:
        reference, other: folders, repositories on the Hub (`org/model@revision`), or live models; none is changed.
        alignment: from `align`, of every other model; or the expert order to align by first, by default "auto", which
            leaves models alone that are in one order; "none" averages them as they are.
        t: of two models, in [0, 1], by default 0.5; several make several merges in one pass.
        output: a new folder, which gets a card too; checkpoints are then merged as a stream, whatever their size.
        options: `shares`, `repairs`, `calibration`, `dtype`, `layout`, `overwrite`, `device`, `memory` and others of
            `hf_moe_lmc.aligner.MergeOptions`; and revision, subfolder, token, cache_dir, local_files_only.

    Returns:
        the folder `output` (of several t, with one folder `t-...` each); without it a model, or one for each t.

    Raises:
        BadInputError, UnsupportedArchitectureError, HubError: a model cannot be used; t or shares are none of these
            models'; or repairs need data that is not given.
        IncompatiblePairError: the models do not compute the same function of their weights, every difference is
            named; the alignment was made for other models; or layers are unrelated, and not to be forced.
        OutputError: the folder may not be written.
    """
    hub = {name: options.pop(name) for name in HubOptions.__annotations__ if name in options}  # type: ignore[misc]
    aligner = MoeAligner.from_pretrained(reference, *_listed(other), **cast(HubOptions, hub))
    return aligner.merge(alignment, t, output=output, **cast(MergeOptions, options))


def apply(
    alignment: Alignment,
    model: Model,
    output: str | Path | None = None,
    *,
    layout: Layout = "kept",
    dtype: torch.dtype | None = None,
    quantise: Quantisation | None = None,
    overwrite: bool = False,
    allow_other_weights: bool = False,
    **hub: Unpack[HubOptions],
) -> Path | PreTrainedModel:
    """Rewrite a model by an alignment; it computes what it computed before, and no weight is rounded.

    Args:
        alignment: of `model` to a reference.
        model: a folder, a repository on the Hub, or a live model, which is not changed (`Alignment.apply` changes it).
        output: a new folder, which gets a card too; None loads the result.
        layout, dtype, quantise, overwrite, allow_other_weights: as for `MoeAligner.merge`.
        hub: revision, subfolder, token, cache_dir, local_files_only.

    Returns:
        the folder `output`, or without it a model.

    Raises:
        IncompatiblePairError: the alignment was made for another model.
        BadInputError, UnsupportedArchitectureError, HubError, OutputError: the model or the output is unusable.
    """
    opened = open_model(model, hub)
    if output is None:
        return load_aligned(opened, alignment, LoadOptions(dtype=dtype) if dtype else None, not allow_other_weights)
    write_aligned(
        opened,
        alignment,
        Path(output),
        WriteOptions(layout, dtype, overwrite, quantise),
        not allow_other_weights,
        _card([alignment], [opened]),
    )
    return Path(output)


def check_merge(
    aligner: MoeAligner,
    t: float | Sequence[float] | None = None,
    *,
    output: str | Path | None = None,
    **options: Unpack[MergeOptions],
) -> None:
    """Raise what `aligner.merge` with the same arguments would raise before it aligns."""
    models, repairs = aligner.models, options.get("repairs", ())
    _check_names(options)
    _points(len(models.models), t, options)
    models.check_mergeable(options.get("allow_difference", ()), options.get("vocabulary"))
    if models.vocabulary and (repairs == "auto" or needs_data(repairs)):
        raise BadInputError("repairs that need data need models of as many tokens; norms and gram need none")
    if output is not None:
        paths = [path for model in models.models for path in model.paths]
        check_output(Path(output), paths, options.get("overwrite", False))


def align_unless_in_order(
    models: CheckedModels, config: AlignmentConfig, resources: Resources
) -> Alignment | MutualAlignment | None:
    """The alignment that a merge without a given one uses; None: nothing is to be matched, as asked or as it stands."""
    if config.expert_order == "none":
        return None
    if config.expert_order == "auto" and in_order(models):
        if processes().is_main_process:
            announce("experts and units of all models are in one order already: nothing is matched")
        return None
    return align_models(models, config, resources)


def plan_align(
    aligner: MoeAligner,
    config: AlignmentConfig | ExpertOrder | None = None,
    *,
    device: str | torch.device | None = None,
    memory: int | None = None,
) -> Plan:
    """Return the needs of `aligner.align` with the same arguments."""
    return plan_alignment(aligner.models, AlignmentConfig.of(config), Resources(device, memory))


def plan_merge(
    aligner: MoeAligner,
    alignment: GivenAlignment = None,
    t: float | Sequence[float] | None = None,
    *,
    output: str | Path,
    **options: Unpack[MergeOptions],
) -> Plan:
    """Return the needs of `aligner.merge` with the same arguments, alignment included where it is not given.

    Raises:
        As `merge`, as far as no weights and no data need to be read for it.
    """
    check_merge(aligner, t, output=output, **options)
    models = aligner.models
    points, repairs = _points(len(models.models), t, options), options.get("repairs", ())
    config = None if _is_given(alignment) else AlignmentConfig.of(cast(AlignmentConfig | ExpertOrder, alignment))
    merge = _aligned_merge(models, alignment if config is None else "none", options)
    _refuse_unrelated(merge, points, options)
    used = [model for n, model in enumerate(models.models) if any(shares[n] for shares in points.values())]
    likes = [merge.like(shares) for shares in points.values()]
    plan = plan_writing(replace(models, models=tuple(used)), likes, output, _write_options(options))
    if repairs == "auto" or needs_data(repairs):  # the reference is loaded, and a copy of its weights kept
        plan = replace(plan, memory=plan.memory + 2 * sum(models.reference.sizes.values()))
    if config and config.expert_order != "none":
        plan = both(plan_alignment(models, config, _resources(options)), plan)
    return replace(plan, work=_work(config, list(points.values()), repairs))


def plan_apply(
    model: Model,
    output: str | Path,
    *,
    layout: Layout = "kept",
    dtype: torch.dtype | None = None,
    quantise: Quantisation | None = None,
    overwrite: bool = False,
    **hub: Unpack[HubOptions],
) -> Plan:
    """Return the needs of `apply` with the same arguments."""
    opened = open_model(model, hub)
    check_output(Path(output), opened.paths, overwrite)
    return plan_writing(CheckedModels((opened,)), [opened], output, WriteOptions(layout, dtype, overwrite, quantise))


def from_aligned_pretrained(
    name: Model,
    align_to: Model,
    t: float = 1.0,
    config: AlignmentConfig | ExpertOrder | None = None,
    **options: Unpack[Keywords],
) -> PreTrainedModel:
    """`from_pretrained(name)`, aligned to another model; with `t` < 1 on the line between the two.

    Args:
        name: a folder, a repository on the Hub, or a live model, which is not changed.
        align_to: the reference, t = 0.
        t: 1 is `name` itself, rewritten: it computes what it computed, with its own configuration and dtype.
        config: how to align.
        options: see `MergeOptions`; and revision, subfolder, token, cache_dir, local_files_only.

    Raises:
        As `MoeAligner.from_pretrained` and `MoeAligner.merge`.
    """
    return cast(PreTrainedModel, merge(align_to, name, config, t, **options))


def push_to_hub(
    result: Alignment | str | Path,
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    license: str | None = None,
    token: str | None = None,
) -> str:
    """Send an alignment, or the folder of a merge, of a rewritten checkpoint or of an alignment, with its card.

    Args:
        result: the alignment or the folder.
        repo_id: `name` or `organisation/name`.
        private, create_pr, license, token: see `hf_moe_lmc.hub.push_folder`.

    Returns:
        address of the commit or of the pull request.

    Raises:
        As `hf_moe_lmc.hub.push_folder`.
    """
    if isinstance(result, Alignment):
        return push_alignment(result, repo_id, private, create_pr, license, token)
    return push_folder(result, repo_id, private, create_pr, license, token)


def _points(number: int, t: float | Sequence[float] | None, options: MergeOptions) -> dict[str, Shares]:
    """Folder in the output -> shares."""
    shares, extrapolate = options.get("shares"), options.get("extrapolate", False)
    if extrapolate and options.get("repairs"):
        raise BadInputError("repairs restore what averaging shrinks; to extrapolate, give none")
    if shares is not None or number > 2:
        if t is not None:
            raise BadInputError("t is a point between two models; several models, and shares, take no t")
        return {"": normalised_shares(shares, number, extrapolate)}
    if t is None or isinstance(t, (int, float)):
        return {"": shares_at(0.5 if t is None else t, extrapolate)}
    points = {f"t-{point:.12g}": shares_at(point, extrapolate) for point in dict.fromkeys(t)}
    if len(points) < len(dict.fromkeys(t)) or not points:
        raise BadInputError(f"t is {list(t)}; give one value or several that differ by more than 1e-12")
    return points


def _aligned_merge(models: CheckedModels, alignment: GivenAlignment, options: MergeOptions) -> Merge:
    """The merge of models by a given alignment, or by one that is made now."""
    merge = partial(Merge, models, allowed=options.get("allow_difference", ()), vocabulary=options.get("vocabulary"))
    if _is_given(alignment):
        given = [alignment] if isinstance(alignment, Alignment) else list(cast(Alignments, alignment))
        return merge(given, not options.get("allow_other_weights", False))
    config = AlignmentConfig.of(cast(AlignmentConfig | ExpertOrder | None, alignment))
    aligned_now = align_unless_in_order(models, config, _resources(options))
    if aligned_now is None:
        return merge([None] * len(models.others))
    alignments = [aligned_now] if isinstance(aligned_now, Alignment) else list(aligned_now)
    return merge(alignments, check_weights=False)  # these weights were aligned a moment ago


def _repairs(merge: Merge, points: Sequence[Shares], options: MergeOptions) -> MergeRepairs:
    repairs = options.get("repairs", ())
    if repairs != "auto" and not needs_data(repairs):
        return MergeRepairs.without_data(repairs)
    data = CalibrationData.of(options.get("calibration", ()))
    if not data.batches:
        raise BadInputError("repairs need calibration data; give two batches or more")
    model, accelerator = load_model(merge.models.reference, _load_options(options)), accelerator_of_all()
    if not hasattr(model, "hf_device_map"):
        model.to(accelerator.device)
    with temporarily_loaded(model) as saved:
        others = [
            OnDevice(aligned(other.tensors, other.layers, symmetries), saved)
            for other, symmetries in zip(merge.models.others, merge.symmetries, strict=True)
        ]
        specs, data = merge.models.reference.layers, data.to(accelerator.device)
        calibrated = Calibrated(saved, [saved, *others], specs, data, accelerator, merge.in_gauge)
        return calibrate_repairs(calibrated, points, repairs)


def _is_given(alignment: GivenAlignment) -> bool:
    """Whether it is an alignment, or several, and not a way to find one."""
    several = isinstance(alignment, Sequence) and not isinstance(alignment, str)
    return several or isinstance(alignment, Alignment | MutualAlignment)


def _work(config: AlignmentConfig | None, points: Sequence[Shares], repairs: Sequence[str] | str) -> str:
    """The steps of a merge in words; without settings the alignment is given."""
    steps = ["take the given alignment"] if config is None else []
    if config and config.expert_order != "none":
        unless = ", unless all is in one order already" if config.expert_order == "auto" else ""
        steps.append(f"align by the expert order {config.expert_order}{unless}")
    if len(points[0]) == 2:
        steps.append(f"average at t = {', '.join(f'{t:.4g}' for _, t in points)}")
    else:
        steps.append(f"average with the shares {', '.join(f'{share:.4g}' for share in points[0])}")
    steps += [f"repair by {repairs if isinstance(repairs, str) else ', '.join(repairs)}"] if repairs else []
    return "; ".join(steps)


def _refuse_unrelated(merge: Merge, points: Mapping[str, Shares], options: MergeOptions) -> None:
    """Refuse models of which layers are unrelated; warn where the merge is forced."""
    if unrelated := merge.unrelated(points.values()):
        if not options.get("force", False):
            raise IncompatiblePairError(f"{unrelated}; to merge all the same, --force (force=True in Python)")
        logger.warning(unrelated)


def _listed(other: Model | Sequence[Model]) -> Sequence[Model]:
    return other if isinstance(other, Sequence) and not isinstance(other, str) else [cast(Model, other)]


def _card(alignments: Alignments, models: Sequence[OpenedModel]) -> Finish:
    """Write the card of a checkpoint; the cards of its parents are read with the keywords that the models were."""
    access = {model.name: model.source.options for model in models if model.source}
    return lambda folder, name: write_card(folder, alignments, name=name, access=access)


def _check_names(options: MergeOptions) -> None:
    _write_options(options)
    if vocabulary := options.get("vocabulary"):
        check_choice("vocabulary", vocabulary, get_args(Vocabulary))
    repairs = options.get("repairs", ())
    for repair in [repairs] if isinstance(repairs, str) else repairs:
        check_choice("repairs", repair, ("auto",) if isinstance(repairs, str) else REPAIRS.keys())


def _write_options(options: MergeOptions) -> WriteOptions:
    dtype = options.get("dtype")
    if isinstance(dtype, str):
        check_choice("dtype", dtype, (*get_args(Dtype), "auto"))
        dtype = None if dtype == "auto" else getattr(torch, dtype)
    layout, overwrite = options.get("layout", "kept"), options.get("overwrite", False)
    return WriteOptions(layout, dtype, overwrite, options.get("quantise"))


def _load_options(options: MergeOptions) -> LoadOptions:
    return cast(LoadOptions, {name: options[name] for name in LoadOptions.__annotations__ if name in options})  # type: ignore[literal-required]


def _resources(options: MergeOptions) -> Resources:
    return Resources(options.get("device"), options.get("memory"))
