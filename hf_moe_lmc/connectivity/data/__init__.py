"""Rows of text or images -> examples of a model."""

from .examples import examples_for, processor_of
from .language_modeling import packed_blocks
from .rows import load_rows

__all__ = ["examples_for", "load_rows", "packed_blocks", "processor_of"]
