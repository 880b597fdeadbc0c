"""Two whole models -> an Alignment: one symmetry per Mixture-of-Experts layer; saved, loaded, applied."""

from .align import align
from .alignment import Alignment, apply_symmetries
from .merge import merge
from .scramble import scramble

__all__ = ["Alignment", "align", "apply_symmetries", "merge", "scramble"]
