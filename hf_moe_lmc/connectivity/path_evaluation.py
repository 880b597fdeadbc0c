"""Two models and their alignment -> everything that is reported of the paths between them."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import length_hint
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.alignment import (
    Alignment,
    CheckedModels,
    LiveWeights,
    OpenedModel,
    SavedWeights,
    Weights,
    accelerator_of_all,
    temporarily_loaded,
)
from hf_moe_lmc.alignment.live_weights import placed, placement_for
from hf_moe_lmc.errors import BadInputError, check_choice
from hf_moe_lmc.merging import REPAIRS
from hf_moe_lmc.names import Repair, Variant
from hf_moe_lmc.progress import Progress, announce, duration
from hf_moe_lmc.workers import threads_for

from .barrier import barrier_intervals
from .calibration import Batch, CalibrationData
from .curve import Curve, measure
from .evaluation import best_temperature, logits_and_labels, score
from .metrics import check_metrics
from .repair_choice import Calibrated, RepairChoice, choose_repairs, repaired_name
from .report import PathReport
from .routing import Routing, RoutingRecorder, routing_along
from .variants import MATCHED, UNAVERAGED, VARIANTS, WeightPath, control_path, variant_weights

if TYPE_CHECKING:
    from evaluate import EvaluationModule

FEWEST_EXAMPLES = 2
RECORDED = ("naive", "aligned")


@dataclass(frozen=True)
class PathSettings:
    """The paths of an evaluation, and how they are evaluated.

    Args:
        variants: which of `VARIANTS` to evaluate; "naive" is always among them.
        repairs: each is evaluated on every variant, so that it stands beside its controls; see
            `hf_moe_lmc.merging.REPAIRS`. "auto": "norms", "gram" and "moments", one after the other, on every variant
            whose midpoint they bring closer on held-out calibration data.
        metrics: of Hugging Face `evaluate`, from its `load` or from `metrics.load_metric`, computed at every point;
            their features may be named as in `metrics.COLUMNS`.
        routing_tokens: how many tokens the routing is recorded for, on the naive and the aligned path; 0 for none.
        resamples: of the bootstrap.
        seed: of the random element and of the bootstrap.
        memory: so many bytes may be taken to hold the other model, on the device or in host memory; where it does not
            fit, it is read from disk at every point. The figures are the same.
    """

    variants: Sequence[Variant] = ("naive", "aligned")
    repairs: Sequence[Repair | Literal["auto"]] = ("norms", "auto")
    metrics: "Sequence[EvaluationModule]" = field(default=(), repr=False)
    routing_tokens: int = 4096
    resamples: int = 1000
    seed: int = 0
    memory: int = 0

    def __post_init__(self) -> None:
        check_metrics(self.metrics)
        known = {"variants": VARIANTS.keys(), "repairs": REPAIRS.keys() | {"auto"}}
        for name, values in known.items():
            for value in getattr(self, name):
                check_choice(name, value, values)


def evaluate_path(
    pair: CheckedModels,
    model: PreTrainedModel,
    alignment: Alignment,
    data: DataLoader[Any],
    points: Sequence[float],
    calibration: CalibrationData,
    settings: PathSettings,
    accelerator: Accelerator | None = None,
) -> PathReport:
    """Loss, accuracy and routing along the straight line between two models, aligned and under every control.

    All paths see the same batches. `model` stays where it is, lends its place to every point of every path, and has its
    own weights again afterwards; a path of T points costs T evaluations, a repaired one T - 2. Models may be spread
    over devices and offloaded (`device_map`). Under `accelerate launch` the data is shared out; the figures do not
    depend on the number of processes.

    Args:
        pair: reference and other, checked.
        model: the reference, loaded; in evaluation it keeps its dtype and its experts implementation.
        alignment: of the pair.
        data: batches of the model's arguments and `labels`, in a fixed order; see `hf_moe_lmc.connectivity.data`.
        points: ascending from 0 to 1.
        calibration: batches that are not among `data`. Without, there are no temperatures and only the repairs that
            need no data.
        settings: the paths.
        accelerator: the processes and their device; None makes one.

    Returns:
        the curves and what follows from them; a point with a NaN loss is reported as failed.

    Raises:
        BadInputError: the data is empty or has a single example, or a metric asks for what is not there.
    """
    accelerator = accelerator or accelerator_of_all()
    if not hasattr(model, "hf_device_map"):
        model.to(accelerator.device)
    calibration, loader = calibration.to(accelerator.device), accelerator.prepare(data)
    with threads_for(model.num_parameters()), temporarily_loaded(model) as saved:
        pair = _on_devices(pair, model, saved, settings.memory)
        paths, choices = _paths(pair, alignment, saved, calibration, settings, accelerator)
        evaluation = _Evaluation(saved, accelerator, tuple(points), pair.reference.layers, calibration, settings)
        evaluations = sum(len(points) - 2 * (path.like is not None) for path in paths)
        batches, hidden = length_hint(loader), not accelerator.is_main_process
        if batches and not hidden:
            low, high = _seconds(model, next(iter(data)), accelerator)
            times = dict.fromkeys(duration(evaluations * batches * seconds) for seconds in (low, high))
            announce(
                f"{len(paths)} paths, {evaluations} evaluations of {batches} batches: about {' to '.join(times)}, "
                f"a batch takes {low:.2g} to {high:.2g} s now"
            )
        with Progress(total=evaluations * batches or None, desc="evaluating", unit="batches", disable=hidden) as bar:
            for path in paths:
                bar.set_postfix_str(path.name, refresh=False)
                evaluation.run(path, _Counted(loader, bar))
    curves = evaluation.curves
    if len(curves["naive"].evaluations[0].examples) < FEWEST_EXAMPLES:
        raise BadInputError("the evaluation data holds one example; give at least two")
    return PathReport(
        model=type(model).__name__,
        dtype=str(model.dtype).removeprefix("torch."),
        curves=curves,
        intervals=barrier_intervals(
            {name: curve.examples for name, curve in curves.items()},
            points,
            resamples=settings.resamples,
            seed=settings.seed,
        ),
        routing=evaluation.routing,
        choices=choices,
    )


@dataclass(frozen=True)
class _Path:
    """A path that will be evaluated.

    Args:
        name: in the report.
        weights: at every t.
        like: an earlier path with the same endpoints, which are then not evaluated again.
    """

    name: str
    weights: WeightPath
    like: str | None = None


def _paths(
    pair: CheckedModels,
    alignment: Alignment,
    saved: SavedWeights,
    calibration: CalibrationData,
    settings: PathSettings,
    accelerator: Accelerator,
) -> tuple[list[_Path], dict[str, RepairChoice]]:
    """All paths, and of every variant whether "auto" repairs it."""
    single, specs = _single_repairs(settings.repairs, calibration), pair.reference.layers
    paths, choices = list[_Path](), dict[str, RepairChoice]()
    for variant in VARIANTS:
        if variant != "naive" and variant not in settings.variants:
            continue
        weights, chains = variant_weights(variant, pair, alignment, settings.seed), single
        if variant in UNAVERAGED:
            paths.append(_Path(variant, control_path(variant, saved, weights, specs), "naive"))
            continue
        calibrated = Calibrated(saved, [saved, weights], specs, calibration, accelerator, variant in MATCHED)
        if "auto" in settings.repairs and calibration.batches:
            choices[variant] = choose_repairs(calibrated, (0.5, 0.5), variant)
            chains = list(dict.fromkeys([*chains, choices[variant].repairs]))
        for repairs in chains:
            like = variant if repairs else None
            paths.append(_Path(repaired_name(variant, repairs), partial(_point, calibrated, repairs), like))
    return paths, choices


@dataclass(frozen=True)
class _Evaluation:
    """The curves of all paths, as they are measured one after the other."""

    saved: SavedWeights
    accelerator: Accelerator
    points: tuple[float, ...]
    specs: Sequence[MoeLayerSpec]
    calibration: CalibrationData
    settings: PathSettings
    curves: dict[str, Curve] = field(default_factory=dict)
    routing: dict[str, Routing] = field(default_factory=dict)

    def run(self, path: _Path, batches: Iterable[Batch]) -> None:
        """Measure one path."""
        model, held_out = self.saved.model, self.calibration.held_out
        temperature = partial(best_temperature, model, held_out, self.accelerator) if held_out else None
        tokens = self.settings.routing_tokens if path.name in RECORDED else 0
        recorder = RoutingRecorder(model, self.specs, self.accelerator, tokens)
        self.curves[path.name] = measure(
            self.saved,
            path.weights,
            self.points,
            batches,
            self.accelerator,
            temperature,
            recorder.record,
            self.settings.metrics,
            same_endpoints=self.curves.get(path.like) if path.like else None,
        )
        if any(recorder.choices):
            self.routing[path.name] = routing_along(self.points, recorder.choices)


@dataclass(frozen=True)
class _Counted:
    """Batches that a bar counts as they are used."""

    batches: Iterable[Batch]
    bar: Progress

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            yield batch
            self.bar.update()


@torch.no_grad()
def _seconds(model: PreTrainedModel, batch: Batch, accelerator: Accelerator) -> tuple[float, float]:
    """Shortest and longest wall time of evaluating a batch three times; a first time is not counted."""
    model.eval()
    batch, times = send_to_device(batch, accelerator.device), []
    for _ in range(4):
        start = time.perf_counter()
        score(*logits_and_labels(model, batch)).sum().item()
        times.append(time.perf_counter() - start)
    return min(times[1:]), max(times[1:])


def _point(calibrated: Calibrated, repairs: Sequence[Repair], t: float) -> Weights:
    return calibrated.weights((1 - t, t), repairs)


def _on_devices(pair: CheckedModels, model: PreTrainedModel, saved: SavedWeights, memory: int) -> CheckedModels:
    """The pair with the reference's weights where the model has them, and the other's brought there when asked for."""
    (other,) = pair.others
    own = LiveWeights(model)
    placement = placement_for(sum(other.sizes.values()), own, memory) if memory else "disk"
    return CheckedModels(
        (
            OpenedModel(pair.reference.name, model, saved, pair.reference.layers),
            replace(other, tensors=placed(other.tensors, own, placement), source=None),
        ),
        pair.differences,
    )


def _single_repairs(
    repairs: Sequence[Repair | Literal["auto"]], calibration: CalibrationData
) -> list[tuple[Repair, ...]]:
    """No repair, and each alone that can be calibrated."""
    single = [repair for repair in repairs if repair != "auto"]
    return [(), *((repair,) for repair in single if calibration.batches or not REPAIRS[repair].needs_data)]
