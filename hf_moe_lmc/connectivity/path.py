"""Paths between two models, and their evaluation."""

from collections.abc import Callable, Mapping, Sequence

from accelerate import Accelerator
from huggingface_hub.utils import tqdm
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_moe_lmc.merging import interpolate

from .barrier import Barrier
from .evaluation import evaluate

Path = Callable[[float], Mapping[str, Tensor]]
"""t in [0, 1] -> the state dict of a model; t = 0 is the reference, t = 1 the other end."""


def linear_path(reference: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Path:
    """`t -> (1 - t) reference + t other`."""
    return lambda t: dict(interpolate(reference, other, t))


def evaluate_path(
    model: nn.Module,
    path: Path,
    points: Sequence[float],
    batches: DataLoader,
    accelerator: Accelerator,
    description: str = "path",
) -> Barrier:
    """Loss and accuracy at every point of a path.

    Args:
        model: the model whose weights are overwritten point by point; it ends with those of the last point.
        path: the weights at t.
        points: ascending from 0 to 1.
        batches, accelerator: as for `evaluate`.
        description: stands before the progress bar.
    """
    evaluations = []
    for t in tqdm(points, desc=description, unit="point", leave=False, disable=not accelerator.is_main_process):
        model.load_state_dict(path(t))
        evaluations.append(evaluate(model, batches, accelerator))
    return Barrier(tuple(points), tuple(e.loss for e in evaluations), tuple(e.accuracy for e in evaluations))
