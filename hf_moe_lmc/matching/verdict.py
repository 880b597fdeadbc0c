"""The evidence of aligned layers, and the verdict of a pair: how much an alignment is worth."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median, median_high
from typing import Literal, get_args

import torch

from hf_moe_lmc.moe import MoeLayer

from .distance import working_dtype
from .expert_order import ExpertMatching
from .unit_bounds import bounding_rows, total_similarity_bound
from .unit_matching import UnitMatching, match_pair
from .units import Units

Label = Literal["already aligned", "aligned", "ambiguous (experts nearly equal)", "not alignable (weights unrelated)"]
_LABELS: tuple[Label, ...] = get_args(Label)  # from the most to the least that was reached

# Calibrated on layers of known truth (tests/matching/test_verdict.py). Unrelated weights exceeded their control by
# 0.035 at most, scrambled ones of correlation 0.4 by 0.11 at least; nearly equal experts gained 0.05 at most by their
# order, those of correlation 0.4 gained 0.16 at least.
_RELATED = 0.06
_DISTINCT = 0.1
_FIXED = 0.99
_REWRITES = 8
_SAMPLE = 512  # units
_OBVIOUS = 0.5
_COORDINATES = 32


@dataclass(frozen=True)
class LayerEvidence:
    """Figures of one layer's alignment.

    Args:
        expert_method: the route that decided the expert order.
        certified: whether the order is proven optimal over all orders and units.
        expert_margin, gate_agreement, gram_agreement: see `ExpertMatching`.
        solved_pairs: pairs of experts whose units were matched for the order, of E^2.
        unit_solvers: solver -> how many of the layer's unit assignments it solved.
        similarity: sum over all matched units, shared experts included.
        gap: by how much that sum could be exceeded at most, given the order.
        unit_margin_low, unit_margin_median: 10 % quantile and median of the units' margins; see `UnitMatching`.
        fixed_experts, fixed_units: the share of experts, and of units, that stay at their place.
        random_distance: of the layers, if every unit were as far from its partner as those of the first expert are in
            the best of several random symmetric rewrites; an estimate from some of them.
        reduction: 1 - (squared distance of matched experts) / (the least of several random symmetric rewrites).
        null_reduction: the same between the reference and an unrelated expert of the same norms (the other's
            coordinates rotated); 0 where `reduction` is above one half, which needs no control.
        order_gain: 1 - (squared distance of matched experts) / (that of experts matched wrongly, units matched
            best); near 0 where experts are nearly equal. At least so much where it is above one half.
    """

    expert_method: str
    certified: bool
    expert_margin: float
    gate_agreement: float | None
    solved_pairs: int
    unit_solvers: dict[str, int]
    similarity: float
    gap: float
    unit_margin_low: float
    unit_margin_median: float
    fixed_experts: float
    fixed_units: float
    random_distance: float
    reduction: float
    null_reduction: float
    order_gain: float
    gram_agreement: float | None = None


def gather_evidence(
    reference: MoeLayer,
    other: MoeLayer,
    experts: ExpertMatching,
    units: list[UnitMatching],
    shared: list[UnitMatching],
    fixed_distance: float,
) -> LayerEvidence:
    """The evidence of an alignment; figures that cost a pass over the weights are taken from the first expert.

    Args:
        reference, other: the layers.
        experts, units, shared: what was found for them.
        fixed_distance: `fixed_squared_distance` under that order.
    """
    signs, dtype, order = reference.group.unit_signs, working_dtype(reference, other), experts.order.index.tolist()
    found = [*units, *shared]
    margins = torch.cat([one.margins for one in found]).double().sort().values
    moved = torch.cat([one.units.permutation.index for one in found])
    places = torch.cat([torch.arange(len(one.margins)) for one in found])
    a, b = (Units.of(x.experts, e, signs, dtype) for x, e in ((reference, 0), (other, order[0])))
    matched, random = units[0].squared_distance, _least_random_rewrite(a, b)
    reduction = 1 - matched / random if random > 0 else 0.0
    null = 1 - match_pair(a, _rotated(b)).squared_distance / random if reduction < _OBVIOUS and random > 0 else 0.0
    gain = 1.0
    if len(order) > 1:
        gain = _order_gain(a, Units.of(other.experts, order[1], signs, dtype), matched)
    return LayerEvidence(
        expert_method=experts.method,
        certified=experts.certified,
        expert_margin=experts.margin,
        gate_agreement=experts.gate_agreement,
        solved_pairs=len(experts.pairs),
        unit_solvers=dict(Counter(one.solver for one in found)),
        similarity=math.fsum(one.similarity for one in found),
        gap=math.fsum(one.gap for one in found),
        unit_margin_low=margins[len(margins) // 10].item(),
        unit_margin_median=margins[len(margins) // 2].item(),
        fixed_experts=sum(i == j for i, j in enumerate(order)) / len(order),
        fixed_units=(moved == places).double().mean().item(),
        random_distance=math.sqrt(fixed_distance + random * len(moved) / len(a.kept)),
        reduction=reduction,
        null_reduction=null,
        order_gain=gain,
        gram_agreement=experts.gram_agreement,
    )


@dataclass(frozen=True)
class Verdict:
    """The verdict of a pair, and the medians over its layers that it rests on.

    Args:
        label: that of the median layer, counted from "already aligned" to "not alignable".
        layers: label -> number of layers.
        reduction, null_reduction, order_gain, fixed_units, gate_agreement, gram_agreement: see `LayerEvidence`.
    """

    label: Label
    layers: dict[str, int]
    reduction: float
    null_reduction: float
    order_gain: float
    fixed_units: float
    gate_agreement: float | None
    gram_agreement: float | None

    def text(self) -> str:
        """One line: the label, and the figures that it rests on."""
        agreements = (("router rows", self.gate_agreement), ("Gram matrices", self.gram_agreement))
        agree = "".join(f"; {what} agree on {x:.0%} of the order" for what, x in agreements if x is not None)
        return (
            f"verdict: {self.label} (brought closer by {self.reduction:.0%}, unrelated weights by "
            f"{self.null_reduction:.0%}; a wrong expert order is {self.order_gain:.0%} farther; "
            f"{self.fixed_units:.0%} of the units stay{agree})"
        )


def judge_layer(evidence: LayerEvidence) -> Label:
    """The verdict of one layer.

    Not alignable: matching brings it closer than random rewrites by no more than it does an unrelated expert.
    Ambiguous: matched so, but a wrong order of experts comes nearly as close. Already aligned: all else, where next to
    nothing moved.
    """
    if evidence.reduction - evidence.null_reduction < _RELATED:
        return "not alignable (weights unrelated)"
    if evidence.order_gain < _DISTINCT:
        return "ambiguous (experts nearly equal)"
    if evidence.fixed_experts == 1 and evidence.fixed_units >= _FIXED:
        return "already aligned"
    return "aligned"


def judge(layers: Sequence[LayerEvidence]) -> Verdict:
    """The verdict of a pair of models; `layers` holds the evidence of one layer at least."""
    labels = [judge_layer(evidence) for evidence in layers]
    return Verdict(
        label=_LABELS[median_high(_LABELS.index(label) for label in labels)],
        layers={label: labels.count(label) for label in _LABELS if label in labels},
        reduction=median(evidence.reduction for evidence in layers),
        null_reduction=median(evidence.null_reduction for evidence in layers),
        order_gain=median(evidence.order_gain for evidence in layers),
        fixed_units=median(evidence.fixed_units for evidence in layers),
        gate_agreement=_median(evidence.gate_agreement for evidence in layers),
        gram_agreement=_median(evidence.gram_agreement for evidence in layers),
    )


def _least_random_rewrite(a: Units, b: Units) -> float:
    """The least squared distance of a to random rewrites of b, estimated from as many units of each as suffice."""
    count = len(a.kept)
    sample = min(_SAMPLE, count)
    generator = torch.Generator().manual_seed(0)
    rows, distances = a.at(torch.arange(sample, device=a.kept.device)), []
    for _ in range(_REWRITES):
        others = torch.randperm(count, generator=generator)[:sample].to(a.kept.device)
        signs = torch.randint(2, (sample,), generator=generator).to(a.kept.device, torch.int8) * 2 - 1
        distances.append(rows.squared_distance(b.at(others), signs) * count / sample)
    return min(distances)


def _rotated(units: Units) -> Units:
    """The units with their coordinates rotated by one place: of the same norms, and unrelated."""
    signed = units.signed
    return replace(units, kept=units.kept.roll(1, dims=1), signed=None if signed is None else signed.roll(1, dims=1))


def _order_gain(a: Units, wrong: Units, matched: float) -> float:
    """`1 - matched / (least squared distance of a to the wrong expert)`, from a bound where that shows enough."""
    coordinates, squares, wrong_squares = a.strongest(_COORDINATES), a.squares, wrong.squares
    left, right = (
        bounding_rows(a.kept[:, coordinates], squares),
        bounding_rows(wrong.kept[:, coordinates], wrong_squares),
    )
    least = (squares.double().sum() + wrong_squares.double().sum()).item() - 2 * total_similarity_bound(left, right)
    if matched > (1 - _OBVIOUS) * least:
        least = match_pair(a, wrong).squared_distance
    return 1 - matched / least if least > 0 else 0.0


def _median(figures: Iterable[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return median(known) if known else None
