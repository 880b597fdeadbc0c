"""What an alignment of one layer rests on."""

from collections import Counter
from dataclasses import dataclass, replace

import torch

from hf_moe_lmc.moe import MoeLayer
from hf_moe_lmc.symmetry import SignedPermutation

from .distance import working_dtype
from .expert_order import ExpertMatching
from .unit_matching import UnitMatching, match_pair
from .units import Units

_SAMPLE = 4
_OBVIOUS = 0.5


@dataclass(frozen=True)
class LayerEvidence:
    """Figures of one layer's alignment.

    Args:
        expert_method: the route that decided the expert order.
        certified: whether the order is proven optimal over all orders and units.
        expert_margin: see `ExpertMatching`.
        solved_pairs: pairs of experts whose units were matched for the order, of E^2.
        unit_solvers: solver -> how many of the layer's unit assignments it solved.
        similarity: sum over all matched units, shared experts included.
        gap: by how much that sum could be exceeded at most, given the order.
        unit_margin_low, unit_margin_median: 10 % quantile and median of the units' margins; see `UnitMatching`.
        fixed_experts, fixed_units: the share of experts, and of units, that stay at their place.
        reduction: 1 - (squared distance of matched experts) / (the least of several random symmetric rewrites).
        null_reduction: the same between the reference and an unrelated expert of the same norms (the other's
            coordinates rotated); 0 where `reduction` is above one half, which needs no control.
        order_gain: 1 - (squared distance of matched experts) / (that of experts matched wrongly, units matched
            best); near 0 where experts are nearly equal. At least so much where it is above one half.
    """

    expert_method: str
    certified: bool
    expert_margin: float
    solved_pairs: int
    unit_solvers: dict[str, int]
    similarity: float
    gap: float
    unit_margin_low: float
    unit_margin_median: float
    fixed_experts: float
    fixed_units: float
    reduction: float
    null_reduction: float
    order_gain: float


def gather_evidence(
    reference: MoeLayer,
    other: MoeLayer,
    experts: ExpertMatching,
    units: list[UnitMatching],
    shared: list[UnitMatching],
) -> LayerEvidence:
    """The evidence of an alignment, on a sample of experts where a figure costs a pass over the weights."""
    signs, dtype, order = reference.group.unit_signs, working_dtype(reference, other), experts.order.index.tolist()
    found = [*units, *shared]
    margins = torch.cat([one.margins for one in found]).double()
    quantiles = margins.sort().values
    sample = range(min(_SAMPLE, len(order)))
    moved = torch.cat([one.units.permutation.index for one in found])
    places = torch.cat([torch.arange(len(one.margins)) for one in found])

    def pair(i: int, j: int) -> tuple[Units, Units]:
        return Units.of(reference.experts, i, signs, dtype), Units.of(other.experts, order[j], signs, dtype)

    matched = sum(units[i].squared_distance for i in sample)
    random = sum(_random_rewrite(*pair(i, i), seed=i) for i in sample)
    reduction = 1 - matched / random if random > 0 else 0.0
    null = 0.0
    if reduction < _OBVIOUS:
        a, b = pair(0, 0)
        null = 1 - match_pair(a, _rotated(b)).squared_distance / _random_rewrite(a, b, seed=0)
    return LayerEvidence(
        expert_method=experts.method,
        certified=experts.certified,
        expert_margin=experts.margin,
        solved_pairs=len(experts.pairs),
        unit_solvers=dict(Counter(one.solver for one in found)),
        similarity=sum(one.similarity for one in found),
        gap=sum(one.gap for one in found),
        unit_margin_low=quantiles[len(quantiles) // 10].item(),
        unit_margin_median=quantiles[len(quantiles) // 2].item(),
        fixed_experts=sum(i == j for i, j in enumerate(order)) / len(order),
        fixed_units=(moved == places).double().mean().item(),
        reduction=reduction,
        null_reduction=null,
        order_gain=_order_gain(*pair(0, 1), units[0].squared_distance) if len(order) > 1 else 1.0,
    )


def _random_rewrite(a: Units, b: Units, seed: int) -> float:
    """Squared distance of a to b with its units in a random order and with random signs."""
    generator = torch.Generator().manual_seed(seed)
    signed = b.signed is not None
    move = SignedPermutation.random_derangement(len(b.kept), signed=signed, generator=generator)
    return a.squared_distance(b.at(move.permutation.index.to(b.kept.device)), move.signs.to(b.kept.device))


def _rotated(units: Units) -> Units:
    """The units with their coordinates rotated by one place: of the same norms, and unrelated."""
    signed = units.signed
    return replace(units, kept=units.kept.roll(1, dims=1), signed=None if signed is None else signed.roll(1, dims=1))


def _order_gain(a: Units, wrong: Units, matched: float) -> float:
    return 1 - matched / least if (least := match_pair(a, wrong).squared_distance) > 0 else 0.0
