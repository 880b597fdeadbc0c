"""Loss and accuracy of one model on one dataset, as it is and at the temperature that suits it best."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_moe_lmc.errors import BadInputError

from .metrics import IGNORED_LABEL, add_batch, computed

if TYPE_CHECKING:
    from evaluate import EvaluationModule

LOG2_TEMPERATURES = tuple(i / 4 for i in range(-8, 9))


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
    does not change them. A model whose logits are NaN has the loss NaN.

    Args:
        model: gives a batch `logits`: `[B, C]` for classification, `[B, S, V]` for language models.
        batches: a loader prepared by `accelerator` (or the same batches in every process); every batch is a dict with
            `labels`, `[B]` or `[B, S]`.
        accelerator: the processes.
        temperature: divides the logits of `calibrated_loss`.
        metrics: of Hugging Face `evaluate`, over single predictions; see `metrics.COLUMNS`.

    Raises:
        BadInputError: there is nothing to predict, or a metric asks for what is not there.
    """
    model.eval()
    examples, predictions = [], []
    for batch in batches:
        logits, labels = logits_and_labels(model, batch)
        scores = accelerator.pad_across_processes(score(logits, labels, temperature or 1.0), dim=1)
        scores = accelerator.gather_for_metrics(scores).cpu()
        examples.append(scores.double().sum(dim=1))
        predictions.append(scores[..., 0][scores[..., 2] > 0])
        if metrics:
            add_batch(metrics, logits, labels, accelerator)
    sums = torch.cat(examples) if examples else torch.zeros(0, 4, dtype=torch.float64)
    loss, correct, count, calibrated = sums.sum(dim=0).tolist()
    if count == 0:
        raise BadInputError("the evaluation data holds nothing to predict; give at least one labelled example")
    return Evaluation(
        loss / count,
        correct / count,
        int(count),
        None if temperature is None else calibrated / count,
        computed(metrics),
        sums,
        torch.cat(predictions),
    )


def logits_and_labels(
    model: PreTrainedModel, batch: Mapping[str, Tensor]
) -> tuple[Float[Tensor, "B S C"], Int[Tensor, "B S"]]:
    """The logits of every prediction in `batch`, and its label; -100 where there is nothing to predict.

    Labels without a sequence axis are classes, with S = 1. Those of a causal language model are its own tokens:
    position s predicts label s + 1, and the last position nothing. Those of an encoder-decoder, a token classifier or a
    masked language model stand at their position.

    Raises:
        BadInputError: the batch has no labels, or the model gives no logits.
    """
    if "labels" not in batch:
        raise BadInputError(f"a batch holds {', '.join(sorted(batch))} and no labels; give the labels, too")
    labels, causal = batch["labels"], model.can_generate() and not model.config.is_encoder_decoder
    # Given labels, a model would compute its loss too; only a decoder needs them, as its input.
    given = batch if model.config.is_encoder_decoder else {k: v for k, v in batch.items() if k != "labels"}
    logits = getattr(model(**given, **({"use_cache": False} if model.can_generate() else {})), "logits", None)
    if logits is None:
        raise BadInputError(
            f"a {type(model).__name__} gives no logits; evaluated are language models, encoder-decoders, classifiers"
        )
    labels = labels.to(logits.device)
    if labels.ndim == 1:
        return logits[:, None], labels[:, None]
    # Logits without their last position would have to be copied to lie in one piece, and they are large.
    return logits, F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL) if causal else labels


def score(
    logits: Float[Tensor, "B S C"], labels: Int[Tensor, "B S"], temperature: float = 1.0
) -> Float[Tensor, "B S 4"]:
    """Per prediction: cross-entropy, whether it is right, 1, cross-entropy at `temperature`; 0 where there is none."""
    rows, flat = logits.flatten(0, 1).float(), labels.flatten()
    counted = flat != IGNORED_LABEL

    def loss(rows: Tensor) -> Tensor:
        return F.cross_entropy(rows, flat, reduction="none", ignore_index=IGNORED_LABEL)

    plain = loss(rows)
    calibrated = plain if temperature == 1 else loss(rows / temperature)
    largest = counted & (rows.gather(1, flat.clamp(min=0)[:, None])[:, 0] == rows.amax(dim=-1))
    # Among equals the first is predicted. On a CPU argmax takes many times as long as amax: only these rows are asked.
    correct = largest.clone()
    correct[largest] = rows[largest].argmax(dim=-1) == flat[largest]
    return torch.stack([plain, correct.float(), counted.float(), calibrated], dim=-1).unflatten(0, labels.shape)


@torch.no_grad()
def best_temperature(
    model: PreTrainedModel, calibration: Iterable[Mapping[str, Tensor]], accelerator: Accelerator
) -> float:
    """The temperature between 1/4 and 4 that minimises the mean cross-entropy of `logits / temperature`.

    One pass over the data: the loss on a grid of temperatures, and the vertex of the parabola (in the logarithm of the
    temperature) through the lowest point and its neighbours. A model whose logits are NaN keeps temperature 1.
    Source: Guo et al., arXiv:1706.04599, section 4.2; as a baseline for connectivity, arXiv:2510.08023.

    Args:
        model: as for `evaluate`.
        calibration: batches that are not evaluated on; the same in every process, or a prepared loader.
        accelerator: the processes.
    """
    model.eval()
    losses = torch.zeros(len(LOG2_TEMPERATURES), dtype=torch.float64)
    for batch in calibration:
        logits, labels = logits_and_labels(model, batch)
        sums = [score(logits, labels, 2.0**x)[..., 3].sum(dim=1) for x in LOG2_TEMPERATURES]
        losses += accelerator.gather_for_metrics(torch.stack(sums, dim=-1)).cpu().double().sum(dim=0)
    if not torch.isfinite(losses).all():
        return 1.0
    lowest = int(losses.argmin())
    if not 0 < lowest < len(LOG2_TEMPERATURES) - 1:
        return 2.0 ** LOG2_TEMPERATURES[lowest]
    before, at, after = losses[lowest - 1 : lowest + 2].tolist()
    curvature = before - 2 * at + after
    offset = (before - after) / (2 * curvature) if curvature > 0 else 0.0
    return 2.0 ** (LOG2_TEMPERATURES[lowest] + offset / 4)
