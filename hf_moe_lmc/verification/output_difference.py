"""How far the outputs of two models differ, position by position."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .difference import row_differences


@dataclass(frozen=True)
class OutputDifference:
    """How far the logits differ: `max |after - before| / max |before|` at each position, that of a token or an image.

    Rounding may decide a near tie of a router anew; then a few positions differ by far more than rounding.

    Args:
        median: over all positions.
        largest: the worst of all positions.
    """

    median: float
    largest: float


def output_difference(
    before: PreTrainedModel, after: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]
) -> OutputDifference:
    """Over all positions of all `batches`, keyword arguments of the models."""
    positions = torch.cat([row_differences(_output(before, batch), _output(after, batch)) for batch in batches])
    return OutputDifference(float(positions.median()), float(positions.max()))


def _output(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """The logits, or what else comes first; the last of a backbone's feature maps."""
    result = model(**batch, use_cache=False) if "input_ids" in batch else model(**batch)
    answer = result["logits"] if "logits" in result else result[0]
    return answer if isinstance(answer, Tensor) else answer[-1]
