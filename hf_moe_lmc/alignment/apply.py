"""Applying an alignment to a checkpoint."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from hf_moe_lmc.checkpoints import HubOptions
from hf_moe_lmc.errors import IncompatiblePairError

from .alignment import Alignment, apply_symmetries
from .opened_model import OpenedModel, open_checkpoint
from .steps import Step
from .stream import Output, OutputOptions, write_checkpoints


def apply(
    alignment: Alignment,
    other: str | Path,
    output: str | Path,
    options: OutputOptions | None = None,
    hub: HubOptions | None = None,
    allow_other_weights: bool = False,
) -> None:
    """Write the checkpoint `other`, rewritten by `alignment`, to the folder `output`; it computes what it computed.

    Args:
        alignment: what `align(reference, other)` found.
        other: a folder, or a repository on the Hub.
        output: a new folder.
        options: layout, dtype, overwrite.
        hub: revision, subfolder, token, cache_dir, local_files_only.
        allow_other_weights: whether `other` may hold other weights than the alignment was made for, such as another
            fine-tune of the same model.

    Raises:
        IncompatiblePairError: the alignment was made for another model.
        BadInputError, UnsupportedArchitectureError, HubError, OutputError: the checkpoint or the output is unusable.
    """
    opened = open_checkpoint(other, hub)
    check_layers(alignment, opened)

    def compute(step: Step) -> Iterator[dict[str, Tensor]]:
        yield aligned(alignment, opened, step, allow_other_weights)

    recipe = {"command": "apply", "alignment": alignment.digest, "other": opened.origin}
    write_checkpoints(opened, [Output(Path(output), recipe)], compute, [], options or OutputOptions())


def check_layers(alignment: Alignment, model: OpenedModel) -> None:
    """Raise `IncompatiblePairError` unless the layers of the alignment are those of the model."""
    known = {spec.name for spec in model.layers}
    for name in alignment.layers:
        if name not in known:
            raise IncompatiblePairError(f"layer {name} of the alignment does not exist in {model.name}")
    for name in known - alignment.layers.keys():
        raise IncompatiblePairError(f"layer {name} of {model.name} is not part of the alignment")


def aligned(alignment: Alignment, model: OpenedModel, step: Step, allow_other_weights: bool) -> dict[str, Tensor]:
    """The tensors of one step of `model`, rewritten."""
    tensors = model.read(step.names)
    if alignment.other and not allow_other_weights:
        for spec in step.layers:
            alignment.other.check(spec, tensors, model.name)
    return apply_symmetries(tensors, step.layers, {spec.name: alignment.symmetries[spec.name] for spec in step.layers})
