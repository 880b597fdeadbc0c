"""Loss and accuracy of one model on one dataset."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from hf_moe_lmc.errors import BadInputError

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Evaluation:
    """Means over `count` predictions (images, or tokens of a language model).

    Args:
        loss: mean cross-entropy, nats.
        accuracy: share of predictions that are right.
        count: number of predictions.
    """

    loss: float
    accuracy: float
    count: int


@torch.no_grad()
def evaluate(model: nn.Module, batches: DataLoader, accelerator: Accelerator) -> Evaluation:
    """Cross-entropy and accuracy of `model`, summed over all examples of all processes, then divided once.

    The task loss only: a load-balancing loss is no part of it. Every process gets the same figures, and their number
    does not change them.

    Args:
        model: answers a batch with `logits`: `[B, C]` for classification, `[B, S, V]` for causal language models.
        batches: a loader prepared by `accelerator`; every batch is a dict with `labels`, `[B]` or `[B, S]`.
        accelerator: the processes.

    Raises:
        BadInputError: there is nothing to predict.
    """
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        scores = score(model(**batch).logits, batch["labels"])
        sums += accelerator.gather_for_metrics(scores).double().cpu().sum(dim=0)
    loss, correct, count = sums.tolist()
    if count == 0:
        raise BadInputError("the evaluation data holds nothing to predict; give at least one labelled example")
    return Evaluation(loss / count, correct / count, int(count))


def score(logits: Float[Tensor, "B *S C"], labels: Int[Tensor, "B *S"]) -> Float[Tensor, "B 3"]:
    """Per example: summed cross-entropy, correct predictions, predictions; labels of -100 do not count.

    Labels with a sequence axis are those of a causal language model: position s predicts label s + 1.
    """
    if labels.ndim == 2:
        logits, labels = logits[:, :-1], labels[:, 1:]
    else:
        logits, labels = logits[:, None], labels[:, None]
    counted = labels != IGNORED_LABEL
    loss = F.cross_entropy(logits.mT.float(), labels, reduction="none", ignore_index=IGNORED_LABEL)
    correct = (logits.argmax(dim=-1) == labels) & counted
    return torch.stack([loss, correct.float(), counted.float()], dim=-1).sum(dim=1)
