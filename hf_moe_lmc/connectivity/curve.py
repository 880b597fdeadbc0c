"""A path, evaluated."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.alignment import SavedWeights

from .barrier import Barrier
from .evaluation import Evaluation, evaluate
from .variants import WeightPath

if TYPE_CHECKING:
    from evaluate import EvaluationModule

NO_PREDICTIONS = torch.zeros(0)


@dataclass(frozen=True)
class Curve:
    """Loss, accuracy and metrics at every point of a path.

    Args:
        t: the points, ascending from 0 to 1.
        evaluations: one per point, on the same examples; single predictions are kept at the endpoints only.
    """

    t: tuple[float, ...]
    evaluations: tuple[Evaluation, ...]

    @property
    def barrier(self) -> Barrier:
        """Loss and accuracy along the path."""
        return Barrier(
            self.t, tuple(point.loss for point in self.evaluations), tuple(point.accuracy for point in self.evaluations)
        )

    @property
    def calibrated_barrier(self) -> float | None:
        """The loss barrier of the temperature-calibrated losses; None without them."""
        losses = [point.calibrated_loss for point in self.evaluations if point.calibrated_loss is not None]
        return Barrier(self.t, tuple(losses), (0.0,) * len(self.t)).loss_barrier if losses else None

    @property
    def midpoint_loss(self) -> float | None:
        """The loss at t = 1/2; None where that is no point of the path."""
        return self.evaluations[self.t.index(0.5)].loss if 0.5 in self.t else None

    @property
    def examples(self) -> Float[Tensor, "N T 4"]:
        """`Evaluation.examples` of every point."""
        return torch.stack([point.examples for point in self.evaluations], dim=1)

    @property
    def ensemble_loss(self) -> float:
        """Mean of `-log((p_0(y) + p_1(y)) / 2)`: cross-entropy of both endpoints' average probabilities."""
        losses = torch.stack([self.evaluations[0].predictions, self.evaluations[-1].predictions]).double()
        return float((-(-losses).logsumexp(dim=0) + torch.tensor(2.0).double().log()).mean())


def measure(
    saved: SavedWeights,
    path: WeightPath,
    points: Sequence[float],
    batches: Iterable[Mapping[str, Tensor]],
    accelerator: Accelerator,
    temperature: Callable[[], float] | None = None,
    observe: Callable[[], AbstractContextManager[object]] = nullcontext,
    metrics: "Sequence[EvaluationModule]" = (),
    same_endpoints: Curve | None = None,
) -> Curve:
    """Loss and accuracy at every point of a path: as many evaluations as points, and no model is loaded.

    Args:
        saved: the weights of the model that the points are loaded into.
        path: the weights at t.
        points: ascending from 0 to 1.
        batches, accelerator: as for `evaluate`.
        temperature: called once the model has a point's weights; what `evaluate` calibrates the loss with.
        observe: gives the context of every evaluation, in the order of the points.
        metrics: as for `evaluate`.
        same_endpoints: a path with the same endpoints, on the same batches: they are not evaluated again.
    """
    known: dict[float, Evaluation] = {}
    if same_endpoints is not None:
        known = {0.0: same_endpoints.evaluations[0], 1.0: same_endpoints.evaluations[-1]}
    evaluations = []
    for t in points:
        if t in known:
            evaluations.append(known[t])
            continue
        saved.load(path(t))
        calibrated = temperature() if temperature else None
        with observe():
            evaluation = evaluate(saved.model, batches, accelerator, calibrated, metrics)
        evaluations.append(evaluation if t in (0, 1) else replace(evaluation, predictions=NO_PREDICTIONS))
    return Curve(tuple(points), tuple(evaluations))
