"""A tensor of B against the one of A at its place: norms, attention, embeddings, router rows in a given order."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from hf_moe_lmc.matching import CERTAIN, matrix_similarity

from .fit import FACTOR, GAIN, ROUNDING, Kind, is_rounded, same_values, squares

TensorKind = Kind | Literal["missing", "shape"]

_FAR = 0.5  # relative distance below which a tensor is the same one, whatever chance says
_MANY = 16  # entries
_ROWS = 64


@dataclass(frozen=True)
class TensorComparison:
    """What one tensor of B is in terms of A.

    Args:
        name: its module name in B, or in A where B lacks it.
        kind: as of experts; "missing" where one of the models lacks it, "shape" where the shapes differ.
        change: relative distance; None where nothing changed, or where it cannot be told.
        missing_in: of the kind "missing": which model lacks it.
        factor: of the kind "scaled".
        is_matrix: whether chance has a say: it has two axes or more.
        is_related: whether it is nearer than chance; only of matrices.
        is_router: whether it belongs to a router.
        stayed: whether it is A's as it stands, while the experts that its entries belong to moved.
    """

    name: str
    kind: TensorKind
    change: float | None = None
    missing_in: Literal["A", "B"] | None = None
    factor: float = 1.0
    is_matrix: bool = False
    is_related: bool = False
    is_router: bool = False
    stayed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Its row of the JSON document."""
        return {"name": self.name, "kind": self.kind, "change": self.change}


def compare_tensors(name: str, a: Tensor, b: Tensor) -> TensorComparison:
    """What b is in terms of a, entry by entry."""
    tensor = _compare(name, a, b)
    if b.ndim < 2 or not b.is_floating_point() or not a.isfinite().all() or not b.isfinite().all():
        return tensor
    related = tensor.kind in ("identical", "rounded", "scaled", "transposed")
    related = related or (tensor.kind == "changed" and is_related(a, b))
    return replace(tensor, is_matrix=True, is_related=related)


def _compare(name: str, a: Tensor, b: Tensor) -> TensorComparison:
    if a.shape != b.shape:
        if a.ndim == 2 and a.T.shape == b.shape and is_near(a.T, b):
            return TensorComparison(name, "transposed", _change(a.T, b))
        return TensorComparison(name, "shape")
    if same_values(a, b):
        return TensorComparison(name, "identical" if a.dtype == b.dtype else "rounded")
    if not b.is_floating_point() or not a.is_floating_point() or b.itemsize < 2 or a.itemsize < 2:
        return TensorComparison(name, "changed")
    if not b.isfinite().all():
        return TensorComparison(name, "not_finite")
    if not a.isfinite().all():
        return TensorComparison(name, "unrelated")
    if not b.any():
        return TensorComparison(name, "zero")
    change = _change(a, b)
    if change > FACTOR / 2:
        factor = _factor(a, b)
        left = _change(a, b.to(torch.promote_types(b.dtype, torch.float32)) / factor) if factor else math.inf
        # A few numbers are nearly off by a factor by chance.
        limit = GAIN * change if b.numel() >= _MANY else ROUNDING
        if left < limit and abs(factor - 1) > FACTOR:
            return TensorComparison(name, "scaled", left if left > ROUNDING else None, factor=factor)
    if change > _FAR and not is_related(a, b):
        if a.ndim == 2 and a.shape[0] == a.shape[1] and is_near(a.T, b):
            return TensorComparison(name, "transposed", _change(a.T, b))
        return TensorComparison(name, "unrelated")
    return TensorComparison(name, "rounded" if is_rounded(a, b, change) else "changed", change)


def is_related(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape agree more than chance explains; some rows are looked at."""
    x, y = (_some_rows(_matrix(tensor)) for tensor in (a, b))
    return matrix_similarity(x, y).z.item() >= CERTAIN


def is_near(a: Tensor, b: Tensor) -> bool:
    """Whether b is a but for a change."""
    return a.is_floating_point() and b.is_floating_point() and is_related(a, b)


def _some_rows(rows: Shaped[Tensor, "R d"]) -> Tensor:
    chosen = torch.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).long()
    return rows[chosen].to(torch.promote_types(rows.dtype, torch.float32))


def _change(a: Tensor, b: Tensor) -> float:
    distance, norm, _ = _sums(a, b)
    return math.sqrt(distance / norm) if norm > 0 else math.inf


def _factor(a: Tensor, b: Tensor) -> float:
    distance, norm, other_norm = _sums(a, b)
    return (norm + other_norm - distance) / 2 / norm if norm > 0 else 0.0


def _sums(a: Tensor, b: Tensor) -> list[float]:
    """`|a - b|^2`, `|a|^2` and `|b|^2`."""
    return [part.double().sum().item() for part in squares(_matrix(a), _matrix(b))]


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if tensor.ndim > 1 else tensor.reshape(1, -1)
