"""Loss and accuracy of one model on one dataset."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from hf_moe_lmc.errors import BadInputError

from .prediction_metrics import add_batch, figures
from .predictions import answer, score

if TYPE_CHECKING:
    from evaluate import EvaluationModule


@dataclass(frozen=True)
class Evaluation:
    """Means over `count` predictions (images, sequences, or tokens of a language model), and what they come from.

    Args:
        loss: mean cross-entropy, nats.
        accuracy: share of predictions that are right.
        count: number of predictions.
        calibrated_loss: mean cross-entropy at the given temperature, or None.
        metrics: figures of the given metrics, by name.
        examples: `[N, 4]`, for every example (image, sequence, block of tokens) in the order of the data: summed loss,
            right predictions, predictions, summed loss at the given temperature; float64.
        predictions: loss of every prediction, in the order of the data; `[P]`, float32.
    """

    loss: float
    accuracy: float
    count: int
    calibrated_loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    examples: Float[Tensor, "N 4"] = field(default_factory=lambda: torch.zeros(0, 4), repr=False, compare=False)
    predictions: Float[Tensor, " P"] = field(default_factory=lambda: torch.zeros(0), repr=False, compare=False)


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    accelerator: Accelerator,
    temperature: float | None = None,
    metrics: "Sequence[EvaluationModule]" = (),
) -> Evaluation:
    """Cross-entropy and accuracy of `model`, summed over all examples of all processes, then divided once.

    The task loss only: a load-balancing loss is no part of it. Every process gets the same figures, and their number
    does not change them. A model that answers NaN has the loss NaN.

    Args:
        model: answers a batch with `logits`: `[B, C]` for classification, `[B, S, V]` for language models.
        batches: a loader prepared by `accelerator` (or the same batches in every process); every batch is a dict with
            `labels`, `[B]` or `[B, S]`.
        accelerator: the processes.
        temperature: divides the logits of `calibrated_loss`.
        metrics: of Hugging Face `evaluate`, over single predictions; see `prediction_metrics.COLUMNS`.

    Raises:
        BadInputError: there is nothing to predict, or a metric asks for what is not there.
    """
    model.eval()
    examples, predictions = [], []
    for batch in batches:
        logits, labels = answer(model, batch)
        scores = accelerator.pad_across_processes(score(logits, labels, temperature or 1.0), dim=1)
        scores = accelerator.gather_for_metrics(scores).cpu()
        examples.append(scores.double().sum(dim=1))
        predictions.append(scores[..., 0][scores[..., 2] > 0])
        if metrics:
            add_batch(metrics, logits, labels, accelerator)
    found = torch.cat(examples) if examples else torch.zeros(0, 4, dtype=torch.float64)
    loss, correct, count, calibrated = found.sum(dim=0).tolist()
    if count == 0:
        raise BadInputError("the evaluation data holds nothing to predict; give at least one labelled example")
    return Evaluation(
        loss / count,
        correct / count,
        int(count),
        None if temperature is None else calibrated / count,
        figures(metrics),
        found,
        torch.cat(predictions),
    )
