"""Metrics of Hugging Face `evaluate` over single predictions, each given the columns that its features name.

`evaluate` is slow to import, and imported only where a metric is loaded.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from hf_moe_lmc.errors import BadInputError, HubError

if TYPE_CHECKING:
    from evaluate import EvaluationModule

IGNORED_LABEL = -100  # as Transformers marks what is not predicted
OWN_METRIC = "expected_calibration_error"

COLUMNS: dict[str, Callable[[Float[Tensor, "P C"], Int[Tensor, " P"]], Tensor]] = {
    "predictions": lambda logits, labels: logits.argmax(dim=-1),
    "references": lambda logits, labels: labels,
    "losses": lambda logits, labels: F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED_LABEL),
    "confidences": lambda logits, labels: logits.softmax(dim=-1).amax(dim=-1),
    "prediction_scores": lambda logits, labels: logits.softmax(dim=-1),
}
"""Column that a metric may ask for, by the name it has among the metric's features: the predicted class (or token), the
right one, cross-entropy in nats, the probability of the predicted class, the probabilities of all classes."""


def load_metric(name: str) -> "EvaluationModule":
    """The metric of this name: `expected_calibration_error`, which needs no network, or one that `evaluate.load` finds.

    Raises:
        HubError: the Hub does not give it.
        BadInputError: it needs what is not installed.
    """
    if name == OWN_METRIC:
        from .calibration_error import ExpectedCalibrationError

        return ExpectedCalibrationError()
    import evaluate

    try:
        return evaluate.load(name)
    except (OSError, ImportError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        kind = HubError if isinstance(error, OSError) else BadInputError
        raise kind(f"metric {name}: {reason}; without the network there is {OWN_METRIC}") from error


def check_metrics(metrics: Sequence["EvaluationModule"]) -> None:
    """Refuse metrics that ask for what is not there.

    Raises:
        BadInputError: a metric has a feature that is none of `COLUMNS`.
    """
    for metric in metrics:
        if unknown := sorted(_features(metric) - COLUMNS.keys()):
            raise BadInputError(f"metric {metric.name} asks for {unknown[0]}; there are {', '.join(COLUMNS)}")


def add_batch(
    metrics: Sequence["EvaluationModule"],
    logits: Float[Tensor, "B S C"],
    labels: Int[Tensor, "B S"],
    accelerator: Accelerator,
) -> None:
    """Give every metric the predictions of one batch of all processes; those without a label are left out."""

    def gathered(column: Tensor) -> Tensor:
        padded = accelerator.pad_across_processes(column.unflatten(0, labels.shape), dim=1, pad_index=IGNORED_LABEL)
        return accelerator.gather_for_metrics(padded).flatten(0, 1).cpu()

    wanted = set().union(*map(_features, metrics)) - {"references"}
    flat, rows = labels.flatten(), logits.flatten(0, 1).float()
    references = gathered(flat)
    counted = references != IGNORED_LABEL
    columns = {name: gathered(COLUMNS[name](rows, flat))[counted] for name in sorted(wanted)}
    columns["references"] = references[counted]
    for metric in metrics:
        metric.add_batch(**{name: columns[name].numpy() for name in _features(metric)})


def computed(metrics: Sequence["EvaluationModule"]) -> dict[str, float]:
    """The figures of all metrics, by the names that they give them; the metrics are empty afterwards.

    Raises:
        BadInputError: a metric gives several numbers under one name.
    """
    figures: dict[str, float] = {}
    for metric in metrics:
        for name, value in (metric.compute() or {}).items():
            if torch.as_tensor(value).numel() != 1:
                raise BadInputError(f"metric {metric.name} gives several numbers as {name}; give one that averages")
            figures[name] = float(value)
    return figures


def _features(metric: "EvaluationModule") -> set[str]:
    features = metric.features  # several, where a metric reads several formats of the same columns
    return set(features[0] if isinstance(features, list) else features)
