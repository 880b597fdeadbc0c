"""Merging two models along the straight line between their weights."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from hf_moe_lmc.checkpoints import HubOptions, ReusedMemory, check_output
from hf_moe_lmc.errors import BadInputError, IncompatiblePairError

from .align import align_opened
from .aligned_interpolation import RepairedLine, interpolate_aligned_
from .alignment import Alignment, LiveModel
from .apply import check_layers, check_weights
from .config import AlignmentConfig
from .opened_model import OpenedModel, open_checkpoint, open_model
from .pair import check_pair
from .processes import processes
from .resources import Resources
from .steps import Step
from .stream import OutputOptions, read_paths, write_checkpoints


def merge(
    reference: LiveModel,
    other: LiveModel,
    alignment: Alignment | None = None,
    t: float = 0.5,
    keep_norms: bool = False,
    repaired: RepairedLine | None = None,
) -> LiveModel:
    """A new model with weights `(1 - t) reference + t (alignment . other)`; neither model is changed.

    Args:
        reference: t = 0; gives the merge its configuration and dtypes.
        other: t = 1, once aligned.
        alignment: what `align(reference, other)` found; None aligns on the way.
        t: in [0, 1].
        keep_norms: give units and router rows the norms back that averaging takes from them; needs no data, and
            mostly lowers the loss of the merge (`hf_moe_lmc.merging.preserve_norms`).
        repaired: the line under other repairs, from `hf_moe_lmc.connectivity.calibrate_repairs`.

    Raises:
        BadInputError: `t` is outside [0, 1], or a weight is NaN or infinite.
        IncompatiblePairError: the models differ in class or size, or the alignment was not made for them.
    """
    _check_on_the_line(t)
    first, second = open_model(reference), open_model(other)
    check_pair(first, second)
    alignment = alignment or align_opened(first, second)
    layers = {spec.name: spec for spec in second.layers}
    if strange := alignment.layers.keys() - layers.keys():
        raise IncompatiblePairError(f"layer {min(strange)} of the alignment does not exist in the model")
    merged = deepcopy(reference)
    aligned = [layers[name] for name in alignment.layers]
    # Tied weights have several names, and must move once.
    own = {tensor.data_ptr(): (name, tensor) for name, tensor in reversed(merged.state_dict().items())}
    tensors = dict(own.values())
    others = {name: tensor for name, tensor in second.tensors.items() if name in tensors}
    with torch.no_grad():
        if repaired:
            repaired.interpolate_(tensors, others, aligned, alignment.symmetries, t)
        else:
            interpolate_aligned_(tensors, others, aligned, alignment.symmetries, t, keep_norms)
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
    keep_norms: bool = False,
    resources: Resources | None = None,
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
        allow_other_weights: whether the models may hold other weights than the alignment was made for.
        keep_norms: as for `merge`.
        resources: where layers are aligned, and within how much memory.

    Returns:
        the alignment.

    Raises:
        IncompatiblePairError: the models differ in what they compute, or the alignment was made for others.
        BadInputError, UnsupportedArchitectureError, HubError, OutputError: a checkpoint or the output is unusable.
    """
    first, second = open_checkpoint(reference, reference_options), open_checkpoint(other, other_options)
    return merge_opened(first, second, output, alignment, t, options, allow_other_weights, keep_norms, None, resources)


def merge_opened(
    reference: OpenedModel,
    other: OpenedModel,
    output: str | Path,
    alignment: Alignment | AlignmentConfig | None = None,
    t: float | Sequence[float] = 0.5,
    options: OutputOptions | None = None,
    allow_other_weights: bool = False,
    keep_norms: bool = False,
    repaired: RepairedLine | None = None,
    resources: Resources | None = None,
) -> Alignment:
    """As `merge_checkpoints`, for checkpoints that are open already; `repaired` as for `merge`."""
    several = not isinstance(t, (int, float))
    points = list(dict.fromkeys(t)) if several else [t]
    for point in points:
        _check_on_the_line(point)
    options = options or OutputOptions()
    check_pair(reference, other)
    if isinstance(alignment, Alignment):
        found = alignment
    else:
        # Before time is spent on aligning.
        check_output(Path(output), read_paths(reference, other), options.overwrite)
        found = align_opened(reference, other, alignment, resources=resources)
    check_layers(found, other)
    # What was aligned a moment ago was aligned for these weights.
    trusted = allow_other_weights or found is not alignment
    memory = ReusedMemory(), ReusedMemory()

    def compute(step: Step) -> Iterator[dict[str, Tensor]]:
        fixed = reference.read(step.names, memory[0])
        check_weights(None if trusted else found.reference, reference, step, fixed)
        fixed = {name: widened(tensor, options.dtype) for name, tensor in fixed.items()}
        tensors = other.read(step.names, memory[1])
        check_weights(None if trusted else found.other, other, step, tensors)
        for left, point in enumerate(points, start=1 - len(points)):
            merged = {name: tensor.clone() for name, tensor in fixed.items()} if left else fixed
            if repaired:
                repaired.interpolate_(merged, tensors, step.layers, found.symmetries, point)
            else:
                interpolate_aligned_(merged, tensors, step.layers, found.symmetries, point, keep_norms)
            yield merged

    recipe = {
        "command": "merge",
        "alignment": found.digest,
        "repairs": ["norms"] if keep_norms else [],
        "reference": reference.origin,
        "other": other.origin,
    } | (dict(repaired.record) if repaired else {})
    recipes = {f"t-{point:.12g}" if several else "": recipe | {"t": point} for point in points}
    if processes().is_main_process:
        write_checkpoints(reference, Path(output), recipes, compute, [other], options)
    processes().wait_for_everyone()
    return found


def _check_on_the_line(t: float) -> None:
    if not 0 <= t <= 1:
        raise BadInputError(f"t is {t}; choose a value from 0 (reference) to 1 (other)")


def widened(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """`tensor` in `dtype` if that holds more; what is written wider is computed wider."""
    if dtype is None or not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, dtype))
