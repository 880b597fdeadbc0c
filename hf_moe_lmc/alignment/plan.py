"""What a long run will read, write and need, before it starts."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .config import AlignmentConfig
from .opened_model import OpenedModel
from .pair import check_pair
from .resources import Resources, matching_bytes
from .steps import cut_steps
from .stream import OutputOptions, written_bytes

BASE_BYTES = 500 * 10**6  # Python, torch and Transformers themselves


@dataclass(frozen=True)
class Plan:
    """What a run needs; sizes in bytes.

    Args:
        layers: number of Mixture-of-Experts layers.
        read, written: from and to disk.
        memory: an upper estimate of the peak.
        free: on the disk of the output; None if nothing large is written.
        harmless: differences of the pair that do no harm.
        device: where layers are matched; None if none is.
    """

    layers: int
    read: int
    written: int
    memory: int
    free: int | None
    harmless: list[str]
    device: str | None = None

    @property
    def text(self) -> str:
        """One fact a line."""
        lines = [
            f"Mixture-of-Experts layers  {self.layers}",
            f"to read                    {_gigabytes(self.read)}",
            f"to write                   {_gigabytes(self.written)}",
            f"memory at most about       {_gigabytes(self.memory)}",
        ]
        lines += [] if self.free is None else [f"free on the output's disk  {_gigabytes(self.free)}"]
        lines += [] if self.device is None else [f"layers are matched on      {self.device}"]
        lines += [f"allowed difference: {difference}" for difference in self.harmless]
        return "\n".join(lines) + "\n"


def plan_alignment(
    reference: OpenedModel, other: OpenedModel, config: AlignmentConfig, resources: Resources | None = None
) -> Plan:
    """What `align` needs.

    Raises:
        IncompatiblePairError: the models cannot be aligned.
        BadInputError: not with these resources.
    """
    harmless = check_pair(reference, other)
    read = sum(side.sizes[name] for side in (reference, other) for spec in side.layers for name in spec.tensor_names)
    needed = matching_bytes(reference, other, config)
    device = (resources or Resources()).device_for(needed)
    return Plan(len(reference.layers), read, 0, BASE_BYTES + max(needed.values()), None, harmless, str(device))


def plan_writing(
    reference: OpenedModel, others: Sequence[OpenedModel], outputs: int, folder: str | Path, options: OutputOptions
) -> Plan:
    """What `apply`, or with `others` `merge`, needs for a number of `outputs`, alignment not included.

    Raises:
        IncompatiblePairError: the models cannot be merged.
    """
    sides = [reference, *others]
    harmless = list(dict.fromkeys(difference for other in others for difference in check_pair(reference, other)))
    checkpoint = reference.checkpoint
    steps = cut_steps(reference.sizes, reference.layers, [group.names for group in checkpoint.groups])
    largest = max(step.nbytes for step in steps)
    return Plan(
        len(reference.layers),
        sum(sum(side.sizes.values()) for side in sides),
        outputs * written_bytes(reference, options),
        BASE_BYTES + (len(sides) + 2) * largest,
        shutil.disk_usage(Path(folder).absolute().parent).free,
        harmless,
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
