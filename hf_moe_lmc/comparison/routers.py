"""Whether router rows stayed, moved with their experts, or moved without them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.matching import CERTAIN, matrix_similarity, solve_assignment
from hf_moe_lmc.moe import Router, SymmetryGroup

RouterVerdict = Literal["unmoved", "with experts", "without experts", "changed", "unrelated"]

_SMALL = 0.03  # relative distance that counts as the same place, fine-tuned
_NEARER = 0.5  # what another order must leave of the distance to be believed


@dataclass(frozen=True)
class RouterComparison:
    """What became of the router of one layer.

    Args:
        verdict: "unmoved" where every row is at its place, "with experts" where every row is where its expert is,
            "without experts" where rows moved and experts did not, or moved elsewhere; "changed" where none of these
            is near, but more than chance is left; else "unrelated".
        change: relative distance of the rows in that order; None where nothing changed.
        rows: the row of A that each row of B is, in that order; those of shared and zero experts follow the others.
    """

    verdict: RouterVerdict
    change: float | None
    rows: tuple[int, ...]


def compare_routers(
    a: Router | None, b: Router | None, sources: list[int | None], own: list[int], group: SymmetryGroup
) -> RouterComparison:
    """What became of the router rows, selection biases and all else that belongs to an expert by number.

    Args:
        a, b: the routers; None of a dense MLP.
        sources: the row of A of the expert that each slot of B holds, or None.
        own: the row of A of each slot of B if all stay in place.
        group: whether one vector, or a factor, may be added to all rows for nothing.
    """
    if a is None or b is None or a.weight.shape[1] != b.weight.shape[1]:
        return RouterComparison("unrelated", None, tuple(own))
    x, y = _rows(a, b)
    if not y.isfinite().all() or not x.isfinite().all():
        return RouterComparison("changed", None, tuple(own))
    # Slots without a source of their own are not asked, but where no slot has one, all stand for themselves. Of several
    # that hold one expert, that with the nearest row has it.
    distances, experts = torch.cdist(*(side - side.mean(dim=0) for side in (y, x))), [-1] * len(sources)
    for i in {i for i in sources if i is not None and i < len(x)}:
        slots = [j for j, source in enumerate(sources) if source == i]
        experts[min(slots, key=lambda j: float(distances[j, i]))] = i
    if max(experts) < 0:
        experts = own
    stayed = _distance(x, y, own, group)
    if stayed <= _SMALL and _fits(own, experts):
        return RouterComparison("unmoved", _nonzero(stayed), tuple(own))
    moved = _distance(x, y, experts, group)
    if experts != own and moved < _NEARER and moved <= _NEARER * stayed:
        return RouterComparison("with experts", _nonzero(moved), tuple(_completed(experts, x, y)))
    if stayed <= _SMALL:
        return RouterComparison("unmoved", _nonzero(stayed), tuple(own))
    elsewhere = nearest_rows(a, b, group)
    distance = _distance(x, y, elsewhere, group)
    if distance < _NEARER * min(moved, stayed) and distance < _NEARER:
        return RouterComparison("without experts", _nonzero(distance), tuple(elsewhere))
    order, distance = min(((own, stayed), (experts, moved)), key=lambda pair: pair[1])
    if _is_related(x, y, order):
        verdict: RouterVerdict = "changed" if order == own or _fits(own, order) else "with experts"
        return RouterComparison(verdict, distance, tuple(_completed(order, x, y)))
    return RouterComparison("unrelated", None, tuple(own))


def all_rows(router: Router, further: Router | None) -> Router:
    """The router with the rows of shared and zero experts after its own; zeros where these have none."""
    if further is None:
        return router
    count, rows = len(further.weight), further.tensors()
    joined = {
        name: torch.cat([tensor, rows.get(name, tensor.new_zeros(count, *tensor.shape[1:]))])
        for name, tensor in router.tensors().items()
    }
    return replace(router, **joined)


def _rows(a: Router, b: Router) -> tuple[Float[Tensor, "Ea d"], Float[Tensor, "Eb d"]]:
    names = [name for name in a.tensors() if name in b.tensors()]
    dtype = torch.promote_types(torch.float32, torch.promote_types(a.weight.dtype, b.weight.dtype))
    sides = ([router.tensors()[name].to(dtype) for name in names] for router in (a, b))
    x, y = (torch.cat([part.reshape(len(part), -1) for part in side], dim=1) for side in sides)
    return x, y


def _distance(x: Float[Tensor, "Ea d"], y: Float[Tensor, "Eb d"], order: list[int], group: SymmetryGroup) -> float:
    """Relative distance of the rows of B that `order` gives a row of A, least over free translations and scales."""
    kept = [(j, i) for j, i in enumerate(order) if 0 <= i < len(x)]
    if not kept:
        return math.inf
    slots, rows = (torch.tensor(part) for part in zip(*kept, strict=True))
    own, other = x[rows], y[slots]
    norm = (own - own.mean(dim=0) if group.router_translation and len(own) > 1 else own).norm()
    if group.router_translation and len(own) > 1:
        direct = (other - own).norm()
        own, other = own - own.mean(dim=0), other - other.mean(dim=0)
    else:
        direct = torch.inf
    if group.router_scale and other.norm() > 0:
        other = other * (own.norm() / other.norm())
    return float(min(direct, (other - own).norm()) / norm) if norm > 0 else math.inf


def nearest_rows(
    a: Router, b: Router, group: SymmetryGroup, of_a: Sequence[int] | None = None, of_b: Sequence[int] | None = None
) -> list[int]:
    """The row of A that each row of B is, by their distances; in the best order, if there are as many.

    Args:
        a, b: the routers.
        group: whether one vector may be added to all rows.
        of_a, of_b: the rows that come into question; None of all.
    """
    x, y = _rows(a, b)
    if group.router_translation and len(x) == len(y):
        x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    own, others = (list(range(len(rows)) if chosen is None else chosen) for rows, chosen in ((x, of_a), (y, of_b)))
    distances = torch.cdist(y[others], x[own], compute_mode="donot_use_mm_for_euclid_dist")
    columns = solve_assignment(-distances).columns if len(own) == len(others) else distances.argmin(dim=1)
    return [own[column] for column in columns.tolist()]


def _completed(order: list[int], x: Float[Tensor, "Ea d"], y: Float[Tensor, "Eb d"]) -> list[int]:
    """The order with the nearest rows that no slot has yet, where it names none."""
    free = [i for i in range(len(x)) if i not in order] or list(range(len(x)))
    nearest = torch.cdist(y, x[free]).argmin(dim=1).tolist()
    return [i if i >= 0 else free[nearest[j]] for j, i in enumerate(order)]


def _is_related(x: Float[Tensor, "Ea d"], y: Float[Tensor, "Eb d"], order: list[int]) -> bool:
    kept = [(j, i) for j, i in enumerate(order) if 0 <= i < len(x)]
    if not kept:
        return False
    slots, rows = (torch.tensor(part) for part in zip(*kept, strict=True))
    return matrix_similarity(x[rows], y[slots]).z.item() >= CERTAIN


def _fits(own: list[int], experts: list[int]) -> bool:
    """Whether every expert that is known stands at its place."""
    return all(i in (j, -1) for j, i in zip(own, experts, strict=True))


def _nonzero(distance: float) -> float | None:
    return distance if distance > 1e-6 else None
