"""Layers that are aligned already, kept on disk until the last one is."""

import os
from collections.abc import Callable
from pathlib import Path

from hf_moe_lmc.checkpoints import sync

from .alignment import Alignment


def kept_layer(folder: Path | None, name: str, align: Callable[[], Alignment]) -> Alignment:
    """`align()`, the alignment of the layer `name`; or what that gave to a run that was killed, out of `folder`."""
    if folder is None:
        return align()
    if not (place := folder / name).exists():
        unfinished = folder / f"{name}.partial"
        align().save_pretrained(unfinished)
        for file in unfinished.iterdir():
            sync(file)
        os.rename(unfinished, place)
    return Alignment.from_pretrained(place)
