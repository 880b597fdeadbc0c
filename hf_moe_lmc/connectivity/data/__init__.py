"""Rows of text or images -> examples of a model."""

from .examples import Blocks, Examples, LabelledImages, packed_blocks
from .rows import load_rows
from .selection import examples_for, processor_of, split_calibration

__all__ = [
    "Blocks",
    "Examples",
    "LabelledImages",
    "examples_for",
    "load_rows",
    "packed_blocks",
    "processor_of",
    "split_calibration",
]
