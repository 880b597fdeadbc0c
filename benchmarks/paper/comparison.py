"""One pair of endpoints under every method and every control."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_moe_lmc.connectivity import Curve
from hf_moe_lmc.connectivity.evaluation import logits_and_labels
from hf_moe_lmc.connectivity.metrics import IGNORED_LABEL

from .pair import Pair

DIGITS = 6


def compare(pair: Pair, seed: int) -> dict[str, dict]:
    """Source -> path -> its figures."""
    paths = pair.paths(seed)
    results: dict[str, dict] = {}
    for source in pair.test:
        curves: dict[int, dict] = {}
        results[source] = {
            name: curves.get(id(path)) or curves.setdefault(id(path), figures(pair.curve(path, source)))
            for name, path in paths.items()
        }
        results[source]["ensemble"] = ensemble(pair.reference, pair.other, pair.test[source])
    return results


def figures(curve: Curve) -> dict[str, object]:
    """What is kept of a curve."""
    barrier, middle, calibrated = curve.barrier, curve.evaluations[curve.t.index(0.5)], curve.calibrated_barrier
    quantities = ("loss_barrier", "loss_auc", "accuracy_barrier", "accuracy_auc")
    return {
        **{quantity: round(getattr(barrier, quantity), DIGITS) for quantity in quantities},
        "calibrated_barrier": None if calibrated is None else round(calibrated, DIGITS),
        "midpoint": {"loss": round(middle.loss, DIGITS), "accuracy": round(middle.accuracy, DIGITS)},
        "loss": [round(loss, DIGITS) for loss in barrier.loss],
        "accuracy": [round(accuracy, DIGITS) for accuracy in barrier.accuracy],
    }


@torch.no_grad()
def ensemble(
    first: PreTrainedModel, second: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, float]:
    """Loss and accuracy of the mean of both models' predicted probabilities."""
    loss, right, count = 0.0, 0, 0
    for batch in batches:
        (logits, labels), (others, _) = logits_and_labels(first, batch), logits_and_labels(second, batch)
        both = torch.logaddexp(logits.log_softmax(-1), others.log_softmax(-1)).flatten(0, 1) - math.log(2)
        labels = labels.flatten()
        loss += float(F.nll_loss(both, labels, reduction="sum", ignore_index=IGNORED_LABEL))
        right += int((both.argmax(-1) == labels).sum())
        count += int((labels != IGNORED_LABEL).sum())
    return {"loss": loss / count, "accuracy": right / count}
