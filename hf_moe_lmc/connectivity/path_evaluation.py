"""Two models and their alignment -> everything that is reported of the path between them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from hf_moe_lmc.adapters import MoeLayerSpec, alignable_layers
from hf_moe_lmc.alignment import Alignment
from hf_moe_lmc.alignment.align import align_opened
from hf_moe_lmc.alignment.apply import check_layers
from hf_moe_lmc.alignment.opened_model import OpenedModel
from hf_moe_lmc.alignment.pair import check_pair
from hf_moe_lmc.alignment.processes import accelerator_of_all
from hf_moe_lmc.errors import BadInputError

from .arrangements import ARRANGEMENTS, Arrangement, arranged
from .auto_repair import RepairChoice, choose_repairs
from .barrier import barrier_intervals
from .calibrate import calibrated_line, halved
from .curve import Curve, measure
from .evaluation import best_temperature
from .live_weights import BorrowedWeights, LiveWeights, borrow
from .metrics import check_metrics
from .other_endpoint import beside, place_for
from .path import Path, points_of
from .repairs import CALIBRATED, Repair, repaired_name, repaired_path
from .report import PathReport
from .routing import Routing, RoutingRecorder, routing_along

if TYPE_CHECKING:
    from evaluate import EvaluationModule

FEWEST_EXAMPLES = 2
RECORDED = ("naive", "aligned")


def evaluate_path(
    reference: PreTrainedModel,
    other: PreTrainedModel | Mapping[str, Tensor],
    alignment: Alignment | None,
    data: DataLoader,
    t: int | Sequence[float] = 25,
    *,
    calibration: Iterable[Mapping[str, Tensor]] = (),
    arrangements: Sequence[Arrangement] = tuple(ARRANGEMENTS),
    repairs: Sequence[Repair | Literal["auto"]] = ("norms", "rescale", "auto"),
    routing_tokens: int = 4096,
    resamples: int = 1000,
    seed: int = 0,
    metrics: "Sequence[EvaluationModule]" = (),
    accelerator: Accelerator | None = None,
    memory: int = 0,
) -> PathReport:
    """Loss, accuracy and routing along the straight line from `reference` to `other`, aligned and under every control.

    All paths see the same batches. `reference` stays where it is, lends its place to every point of every path, and has
    its own weights again afterwards; a path of T points costs T evaluations, a repaired one T - 2. Models may be spread
    over devices and offloaded (`device_map`). Under `accelerate launch` the data is shared out; the figures do not
    depend on the number of processes.

    Args:
        reference: t = 0; in evaluation it keeps its dtype and its experts implementation.
        other: t = 1; a model, or weights under module names, in memory or lazily read.
        alignment: what `align(reference, other)` found; None aligns on the way.
        data: batches of the model's arguments and `labels`, in a fixed order; see `hf_moe_lmc.connectivity.data`.
        t: number of points, equally spaced, or the points themselves.
        calibration: batches that are not among `data`, the same in every process. With at least two, half of them
            calibrate repairs, the other half fits temperatures and chooses repairs; without, there are no temperatures
            and only the repairs that need no data, "norms" and "gram".
        arrangements: which of `ARRANGEMENTS` to evaluate; "naive" is always among them.
        repairs: each is evaluated on every arrangement, so that it stands beside its controls; see
            `hf_moe_lmc.connectivity.repairs`. "auto": those of "norms", "gram" and "moments" that together give the
            aligned midpoint its lowest loss on held-out calibration data.
        routing_tokens: how many tokens the routing is recorded for, on the naive and the aligned path; 0 for none.
        resamples: of the bootstrap.
        seed: of the random element and of the bootstrap.
        metrics: of Hugging Face `evaluate`, from its `load` or from `metrics.load_metric`, computed at every point;
            their features may be named as in `metrics.COLUMNS`.
        accelerator: the processes and their device; None makes one.
        memory: so many bytes may be taken to hold a checkpoint `other`, on the device or in host memory; where it does
            not fit, it is read from disk at every point. The figures are the same.

    Returns:
        the curves and what follows from them; a point with a NaN loss is reported as failed.

    Raises:
        BadInputError: the data is empty or has a single example, there is one calibration batch only, `t` is no
            path, or a metric asks for what is not there.
        IncompatiblePairError: the models differ in class or size, or the alignment is another pair's.
        UnsupportedArchitectureError: a Mixture-of-Experts block is not known.
    """
    points, accelerator = points_of(t), accelerator or accelerator_of_all()
    check_metrics(metrics)
    if not hasattr(reference, "hf_device_map"):
        reference.to(accelerator.device)
    own = LiveWeights(reference)
    first = OpenedModel(type(reference).__name__, reference, own, alignable_layers(reference))
    second = (
        OpenedModel(type(other).__name__, other, LiveWeights(other), alignable_layers(other))
        if isinstance(other, PreTrainedModel)
        else OpenedModel("the other", reference, other, first.layers)
    )
    check_pair(first, second)
    if alignment is None:
        alignment = align_opened(first, second)
    check_layers(alignment, second)
    place = place_for(sum(second.sizes.values()), own, memory) if memory else "disk"
    second = replace(second, tensors=beside(second.tensors, own, place))
    batches = [send_to_device(batch, accelerator.device) for batch in calibration]
    fitted, held_out = halved(batches)
    specs, loader = first.layers, accelerator.prepare(data)

    single = [repair for repair in repairs if repair != "auto" and (fitted or repair not in CALIBRATED)]
    chains: list[tuple[Repair, ...]] = [(), *((repair,) for repair in single)]
    curves: dict[str, Curve] = {}
    routing: dict[str, Routing] = {}
    choice: RepairChoice | None = None
    with borrow(reference) as weights:
        temperature = partial(best_temperature, reference, held_out, accelerator) if held_out else None
        others = arranged(weights, second.tensors, specs, alignment.symmetries, seed)
        paths = {arrangement: _paths(weights, moved, specs, fitted) for arrangement, moved in others.items()}
        if "auto" in repairs and held_out and "aligned" in arrangements:
            choice = choose_repairs(weights, paths["aligned"], held_out, accelerator)
            chains = list(dict.fromkeys([*chains, choice.repairs]))
        for arrangement, path_of in paths.items():
            if arrangement not in ("naive", *arrangements):
                continue
            for chain in chains:
                name, path = repaired_name(arrangement, chain), path_of(chain)
                recorder = RoutingRecorder(reference, specs, accelerator, routing_tokens if name in RECORDED else 0)
                curves[name] = measure(
                    weights,
                    path,
                    points,
                    loader,
                    accelerator,
                    name,
                    temperature,
                    recorder.record,
                    metrics,
                    same_endpoints=curves.get(arrangement),  # a repaired path has those of the plain one
                )
                if any(recorder.choices):
                    routing[name] = routing_along(points, recorder.choices)
    if len(curves["naive"].evaluations[0].examples) < FEWEST_EXAMPLES:
        raise BadInputError("the evaluation data holds one example; give at least two")
    return PathReport(
        model=type(reference).__name__,
        dtype=str(reference.dtype).removeprefix("torch."),
        curves=curves,
        intervals=barrier_intervals(
            {name: curve.examples for name, curve in curves.items()}, points, resamples=resamples, seed=seed
        ),
        routing=routing,
        repair=choice,
    )


def _paths(
    weights: BorrowedWeights,
    other: Mapping[str, Tensor],
    specs: Sequence[MoeLayerSpec],
    batches: Sequence[Mapping[str, Tensor]],
) -> Callable[[Sequence[Repair]], Path]:
    """Repairs -> the path to `other` under them."""
    reaching = calibrated_line(weights, other, specs, batches)
    return lambda repairs: repaired_path(weights, other, specs, repairs, reaching)
