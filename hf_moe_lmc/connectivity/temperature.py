"""Temperature calibration: how much of a loss is only over- or underconfidence."""

from collections.abc import Iterable, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from .predictions import answer, score

LOG2_TEMPERATURES = tuple(i / 4 for i in range(-8, 9))


@torch.no_grad()
def best_temperature(
    model: PreTrainedModel, calibration: Iterable[Mapping[str, Tensor]], accelerator: Accelerator
) -> float:
    """The temperature between 1/4 and 4 that minimises the mean cross-entropy of `logits / temperature`.

    One pass over the data: the loss on a grid of temperatures, and the vertex of the parabola (in the logarithm of the
    temperature) through the lowest point and its neighbours. A model that answers NaN keeps temperature 1.
    Source: Guo et al., arXiv:1706.04599, section 4.2; as a baseline for connectivity, arXiv:2510.08023.

    Args:
        model: as for `evaluate`.
        calibration: batches that are not evaluated on; the same in every process, or a prepared loader.
        accelerator: the processes.
    """
    model.eval()
    losses = torch.zeros(len(LOG2_TEMPERATURES), dtype=torch.float64)
    for batch in calibration:
        logits, labels = answer(model, batch)
        found = [score(logits, labels, 2.0**x)[..., 3].sum(dim=1) for x in LOG2_TEMPERATURES]
        losses += accelerator.gather_for_metrics(torch.stack(found, dim=-1)).cpu().double().sum(dim=0)
    if not torch.isfinite(losses).all():
        return 1.0
    lowest = int(losses.argmin())
    if not 0 < lowest < len(LOG2_TEMPERATURES) - 1:
        return 2.0 ** LOG2_TEMPERATURES[lowest]
    before, at, after = losses[lowest - 1 : lowest + 2].tolist()
    curvature = before - 2 * at + after
    offset = (before - after) / (2 * curvature) if curvature > 0 else 0.0
    return 2.0 ** (LOG2_TEMPERATURES[lowest] + offset / 4)
