"""Merging two models along the straight line between their weights."""

from copy import deepcopy

from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.merging import interpolate

from .align import align
from .alignment import Alignment, Model, apply_symmetries


def merge(reference: Model, other: Model, alignment: Alignment | None = None, t: float = 0.5) -> Model:
    """A new model with weights `(1 - t) reference + t (alignment . other)`; neither model is changed.

    Args:
        reference: t = 0; gives the merge its configuration and dtypes.
        other: t = 1, once aligned.
        alignment: what `align(reference, other)` found; None aligns on the way.
        t: in [0, 1].

    Raises:
        BadInputError: `t` is outside [0, 1], or a weight is NaN or infinite.
        IncompatiblePairError: the models differ in class or size, or the alignment was not made for them.
    """
    if not 0 <= t <= 1:
        raise BadInputError(f"t is {t}; choose a value from 0 (reference) to 1 (other)")
    if alignment is None:
        alignment = align(reference, other)
    aligned = apply_symmetries(other.state_dict(), alignable_layers(other), alignment.symmetries)
    merged = deepcopy(reference)
    merged.load_state_dict(dict(interpolate(reference.state_dict(), aligned, t)))
    return merged
