"""Applying an alignment to a checkpoint."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from hf_moe_lmc.checkpoints import HubOptions
from hf_moe_lmc.errors import IncompatiblePairError

from .alignment import Alignment, apply_symmetries
from .model_record import ModelRecord
from .opened_model import OpenedModel, open_checkpoint
from .steps import Step
from .stream import OutputOptions, write_checkpoints


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
    opened = open_checkpoint(other, hub, quantised=True)
    check_layers(alignment, opened)

    def compute(step: Step) -> Iterator[dict[str, Tensor]]:
        tensors = opened.read(step.names)
        check_weights(None if allow_other_weights else alignment.other, opened, step, tensors)
        own = {spec.name: alignment.symmetries[spec.name] for spec in step.layers}
        yield apply_symmetries(tensors, step.layers, own)

    recipe = {"command": "apply", "alignment": alignment.digest, "other": opened.origin}
    write_checkpoints(opened, Path(output), {"": recipe}, compute, [], options or OutputOptions())


def check_layers(alignment: Alignment, model: OpenedModel) -> None:
    """Raise `IncompatiblePairError` unless the layers of the alignment are those of the model."""
    known = {spec.name for spec in model.layers}
    for name in alignment.layers:
        if name not in known:
            raise IncompatiblePairError(f"layer {name} of the alignment does not exist in {model.name}")
    for name in known - alignment.layers.keys():
        raise IncompatiblePairError(f"layer {name} of {model.name} is not part of the alignment")


def check_weights(record: ModelRecord | None, model: OpenedModel, step: Step, tensors: Mapping[str, Tensor]) -> None:
    """Raise `IncompatiblePairError` unless this step of `model` has the weights of `record`, if there is one."""
    if record:
        for spec in step.layers:
            record.check(spec, tensors, model.name)
