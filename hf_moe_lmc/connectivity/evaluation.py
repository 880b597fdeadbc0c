"""Loss and accuracy of one model on one dataset."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_moe_lmc.errors import BadInputError

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Evaluation:
    """Means over `count` predictions (images, sequences, or tokens of a language model), and what they come from.

    Args:
        loss: mean cross-entropy, nats.
        accuracy: share of predictions that are right.
        count: number of predictions.
        calibrated_loss: mean cross-entropy at the given temperature, or None.
        examples: `[N, 4]`, for every example (image, sequence, block of tokens) in the order of the data: summed loss,
            right predictions, predictions, summed loss at the given temperature; float64.
        predictions: loss of every prediction, in the order of the data; `[P]`, float32.
    """

    loss: float
    accuracy: float
    count: int
    calibrated_loss: float | None = None
    examples: Float[Tensor, "N 4"] = field(default_factory=lambda: torch.zeros(0, 4), repr=False, compare=False)
    predictions: Float[Tensor, " P"] = field(default_factory=lambda: torch.zeros(0), repr=False, compare=False)


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    accelerator: Accelerator,
    temperature: float | None = None,
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

    Raises:
        BadInputError: there is nothing to predict.
    """
    model.eval()
    examples, predictions = [], []
    for batch in batches:
        logits, labels = answer(model, batch)
        scores = accelerator.pad_across_processes(score(logits, labels, temperature or 1.0), dim=1)
        scores = accelerator.gather_for_metrics(scores).cpu()
        examples.append(scores.double().sum(dim=1))
        predictions.append(scores[..., 0][scores[..., 2] > 0])
    found = torch.cat(examples) if examples else torch.zeros(0, 4, dtype=torch.float64)
    loss, correct, count, calibrated = found.sum(dim=0).tolist()
    if count == 0:
        raise BadInputError("the evaluation data holds nothing to predict; give at least one labelled example")
    return Evaluation(
        loss / count,
        correct / count,
        int(count),
        None if temperature is None else calibrated / count,
        found,
        torch.cat(predictions),
    )


def answer(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, "B S C"], Int[Tensor, "B S"]]:
    """The logits of every prediction in `batch`, and its label; -100 where there is nothing to predict.

    Labels without a sequence axis are classes, with S = 1. Those of a causal language model are its own tokens:
    position s predicts label s + 1. Those of an encoder-decoder or a masked language model stand at their position.
    """
    labels, causal = batch["labels"], model.can_generate() and not model.config.is_encoder_decoder
    # Given labels, a model would compute its loss too; only a decoder needs them, as its input.
    given = batch if model.config.is_encoder_decoder else {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**given, **({"use_cache": False} if model.can_generate() else {})).logits
    labels = labels.to(logits.device)
    if labels.ndim == 1:
        return logits[:, None], labels[:, None]
    return (logits[:, :-1], labels[:, 1:]) if causal else (logits, labels)


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
    correct = (rows.argmax(dim=-1) == flat) & counted
    return torch.stack([plain, correct.float(), counted.float(), calibrated], dim=-1).unflatten(0, labels.shape)
