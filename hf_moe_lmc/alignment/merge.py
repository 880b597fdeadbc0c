"""Merging two models along the straight line between their weights."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.checkpoints import HubOptions
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.merging import interpolate, interpolate_tensor

from .align import align, align_opened
from .alignment import Alignment, LiveModel, apply_symmetries
from .apply import aligned, check_layers
from .config import AlignmentConfig
from .opened_model import open_checkpoint
from .pair import check_pair
from .steps import Step
from .stream import Output, OutputOptions, write_checkpoints


def merge(reference: LiveModel, other: LiveModel, alignment: Alignment | None = None, t: float = 0.5) -> LiveModel:
    """A new model with weights `(1 - t) reference + t (alignment . other)`; neither model is changed.

    Args:
        reference: t = 0; gives the merge its configuration and dtypes.
        other: t = 1, once aligned.
        alignment: what `align(reference, other)` found; None aligns on the way.
        t: in [0, 1].

    Raises:
        BadInputError: `t` is outside [0, 1], or a weight is NaN or infinite.
        IncompatiblePairError: the models differ in class or size, or the alignment was not made for them.
    """
    _check_on_the_line(t)
    if alignment is None:
        alignment = align(reference, other)
    moved = apply_symmetries(other.state_dict(), alignable_layers(other), alignment.symmetries)
    merged = deepcopy(reference)
    merged.load_state_dict(dict(interpolate(reference.state_dict(), moved, t)))
    return merged


def merge_checkpoints(
    reference: str | Path,
    other: str | Path,
    output: str | Path,
    alignment: Alignment | AlignmentConfig | None = None,
    t: float | Sequence[float] = 0.5,
    options: OutputOptions | None = None,
    reference_options: HubOptions | None = None,
    other_options: HubOptions | None = None,
    allow_other_weights: bool = False,
) -> Alignment:
    """As `merge`, from folder or Hub to folder, layer by layer; the models may be larger than memory.

    Under `accelerate launch` or `torchrun` the processes divide the layers for alignment, and one of them writes.

    Args:
        reference: t = 0; gives the merge its configuration, layout, dtypes and tokenizer.
        other: t = 1, once aligned.
        output: a new folder; with several `t`, a folder of one folder `t-...` each, all written in one pass.
        alignment: what `align(reference, other)` found, or how to align first.
        t: in [0, 1].
        options: layout, dtype, overwrite.
        reference_options, other_options: revision, subfolder, token, cache_dir, local_files_only.
        allow_other_weights: whether `other` may hold other weights than the alignment was made for.

    Returns:
        the alignment.

    Raises:
        IncompatiblePairError: the models differ in what they compute, or the alignment was made for others.
        BadInputError, UnsupportedArchitectureError, HubError, OutputError: a checkpoint or the output is unusable.
    """
    points = [t] if isinstance(t, (int, float)) else list(t)
    for point in points:
        _check_on_the_line(point)
    options = options or OutputOptions()
    first, second = open_checkpoint(reference, reference_options), open_checkpoint(other, other_options)
    check_pair(first, second)
    found = alignment if isinstance(alignment, Alignment) else align_opened(first, second, alignment)
    check_layers(found, second)
    if PartialState().is_main_process:

        def compute(step: Step) -> Iterator[dict[str, Tensor]]:
            moved = aligned(found, second, step, allow_other_weights)
            fixed = {name: _widened(tensor, options.dtype) for name, tensor in first.read(step.names).items()}
            for point in points:
                yield {name: interpolate_tensor(name, fixed[name], moved[name], point) for name in fixed}

        recipe = {
            "command": "merge",
            "alignment": found.digest,
            "reference": first.origin,
            "other": second.origin,
        }
        folders = [Path(output)] if len(points) == 1 else [Path(output) / f"t-{point:g}" for point in points]
        if len(points) > 1:
            Path(output).mkdir(exist_ok=True)
        outputs = [Output(folder, recipe | {"t": point}) for folder, point in zip(folders, points, strict=True)]
        write_checkpoints(first, outputs, compute, [second], options)
    return found


def _check_on_the_line(t: float) -> None:
    if not 0 <= t <= 1:
        raise BadInputError(f"t is {t}; choose a value from 0 (reference) to 1 (other)")


def _widened(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """`tensor` in `dtype` if that holds more; what is written wider is computed wider."""
    if dtype is None or not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, dtype))
