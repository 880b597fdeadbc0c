"""Aligning two checkpoints, whatever their size, into a folder."""

import shutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from accelerate.utils import broadcast_object_list

from hf_moe_lmc.checkpoints import output_folder

from .align import align_opened
from .alignment import Alignment
from .config import CONFIG_NAME, AlignmentConfig
from .opened_model import OpenedModel
from .processes import processes
from .resources import Resources
from .stream import identity, read_paths
from .versions import versions


def align_into(
    output: Path,
    reference: OpenedModel,
    other: OpenedModel,
    config: AlignmentConfig,
    overwrite: bool = False,
    resources: Resources | None = None,
) -> Alignment:
    """`align_opened(reference, other, config).save_pretrained(output)`, which appears complete or not at all.

    Killed and called again with the same arguments, it goes on after the last layer that was finished.

    Raises:
        OutputError: the output folder may not be written.
        IncompatiblePairError, BadInputError: as `align`.
    """
    recipe = {
        "command": "align",
        "config": asdict(config),
        "device": str(resources.device) if resources else None,
        "models": [side.origin for side in (reference, other)],
        "inputs": [identity(side) for side in (reference, other)],
        "versions": versions(),
    }
    folder = output_folder(output, recipe, read_paths(reference, other), 0, overwrite, CONFIG_NAME)
    with folder if processes().is_main_process else nullcontext() as staged:
        if staged:
            (staged.path / "layers").mkdir(exist_ok=True)
        (kept,) = broadcast_object_list([staged.path / "layers" if staged else None])
        # On another machine the folder may not exist; what is aligned there is then aligned anew.
        found = align_opened(reference, other, config, kept if kept.is_dir() else None, resources)
        if staged:
            shutil.rmtree(kept)
            found.save_pretrained(staged.path)
    processes().wait_for_everyone()
    return found
