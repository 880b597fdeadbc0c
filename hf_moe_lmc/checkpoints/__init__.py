"""Files or Hub <-> tensors under module names, read lazily and written as a stream."""

from .checkpoint import Checkpoint

__all__ = ["Checkpoint"]
