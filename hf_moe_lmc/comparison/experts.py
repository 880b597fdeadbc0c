"""The experts of one bank against those of another: what every expert of B is in terms of A."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.matching import GaugedLayer, solve_assignment
from hf_moe_lmc.matching.unit_matching import keep_units, match_units
from hf_moe_lmc.moe import ExpertBank, MoeLayer, SymmetryGroup
from hf_moe_lmc.symmetry import Permutation, SignedPermutation

from .candidates import agreements, glimpsed_distances, inward_sketch, outward_sketch
from .chance import RELATED, Relation, Rows, partners_relation, relation, signs_of, strongest_units
from .faults import Fault, Rewrite, row_faults, transpositions
from .kinds import Fit, Freedom, Kind, fit, one_expert, widened

_IN_PLACE = 0.3  # relative distance below which units that stand at one place are partners
_FAULTY = (
    0.5  # cosine that a fault must reach, and agreement of sketches, of the two together, that makes it worth a try
)
_CERTAIN = 0.9  # cosine beyond which no other expert is looked at
_RATIO = 0.1  # difference in the logarithms of norms that shows other scales
_ALIKE = 0.03  # experts whose cosines differ by less are both matched
_EMPTY = 0.03  # norm of an unrelated expert, relative to those of A, below which it is as good as zero
_CANDIDATES = 3


@dataclass(frozen=True)
class ExpertComparison:
    """What one expert of B is in terms of A.

    Args:
        slot: its number in B.
        kind: see `Comparison`.
        source: the expert of A that it is; None without.
        change: relative distance after matching; None where nothing changed, or there is no source.
        units: whether its units stand at their places; None without source, or where they were not compared.
        signs, scales: whether units changed sign, or scales that the function does not see.
        factors: by which gate, up and down are off (kind "scaled").
        z: how far it is above chance; None where there is nothing to compare.
    """

    slot: int
    kind: Kind
    source: int | None = None
    change: float | None = None
    units: Literal["in place", "reordered"] | None = None
    signs: bool = False
    scales: bool = False
    factors: tuple[float, float, float] = (1.0, 1.0, 1.0)
    z: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Its row of the JSON document."""
        return {
            "slot": self.slot,
            "kind": self.kind,
            "source": self.source,
            "change": self.change,
            "units": self.units,
            "z": self.z,
        }


def compare_experts(
    a: ExpertBank, b: ExpertBank, group: SymmetryGroup, is_interleaved: bool = False
) -> list[ExpertComparison]:
    """What every expert of bank b is in terms of bank a, experts of the same shapes.

    Experts whose units stand at their places, in whatever slot, are recognised by a few rows and compared in one pass.
    Of all others, sketches that see no order, sign or scale tell which to match, units are matched exactly, and faults
    of storage are tried where that leaves a large distance.

    Args:
        a, b: as stored; NaN and infinite values are allowed.
        group: what leaves the function of their units alone.
        is_interleaved: how rows of gate and up lie if they are stored in one.
    """
    return name_slots(_Banks(a, b, group, is_interleaved).compare())


@dataclass
class _Banks:
    """The work on one pair of banks."""

    a: ExpertBank
    b: ExpertBank
    group: SymmetryGroup
    is_interleaved: bool
    results: dict[int, ExpertComparison] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.freedom = Freedom(self.group.unit_signs, self.group.unit_scale_degree)
        self.usable = [e for e in range(self.a.num_experts) if _state(one_expert(self.a, e)) is None]
        self.of_a = lru_cache(_CANDIDATES)(lambda i: widened(one_expert(self.a, i)))

    def compare(self) -> list[ExpertComparison]:
        slots = range(self.b.num_experts)
        for j in slots:
            if kind := _state(one_expert(self.b, j)):
                self.results[j] = ExpertComparison(j, kind)
        if self.usable and self.a.num_units:
            self._in_place([j for j in slots if j not in self.results])
            self._by_sketches([j for j in slots if j not in self.results])
        return [self.results.get(j) or ExpertComparison(j, "unrelated") for j in slots]

    def _in_place(self, slots: list[int]) -> None:
        """Recognise experts whose units stand at their places."""
        if not slots:
            return
        distances = glimpsed_distances(self.a, self.b)
        forbidden = [i for i in range(self.a.num_experts) if i not in self.usable]
        distances[:, forbidden] = torch.inf
        for j in slots:
            # Of equals, such as experts that A itself repeats, the one at its own place, or one that is not held yet.
            nearest = torch.nonzero(distances[j] <= distances[j].min() + 1e-6)[:, 0].tolist()
            held = {result.source for result in self.results.values()}
            i = j if j in nearest else min(nearest, key=lambda i: (i in held, i))
            if distances[j, i] > 2 * _IN_PLACE:
                continue
            own, other = one_expert(self.a, i), one_expert(self.b, j)
            result = fit(own, other, self.freedom)
            if result.change is None or result.change <= _IN_PLACE:
                self._record(j, i, result, "in place", self._in_place_relation(own, other))

    def _in_place_relation(self, own: ExpertBank, other: ExpertBank) -> Relation:
        own, other = widened(own), widened(other)
        units = strongest_units(own)
        a, b = Rows.of(own, units), Rows.of(other, units)
        return partners_relation(a, b, b, *self._partner_signs(a, b))

    def _partner_signs(self, a: Rows, b: Rows) -> tuple[Float[Tensor, " m"] | None, Float[Tensor, " m"] | None]:
        if not self.freedom.signs:
            return None, None
        return signs_of((a.outward * b.outward).sum(dim=1)), signs_of((a.inward[-1] * b.inward[-1]).sum(dim=1))

    def _by_sketches(self, slots: list[int]) -> None:
        """Recognise experts whose units do not stand at their places, or which are stored wrongly."""
        if not slots:
            return
        sketches = _Sketches(self.a, self.b, self.usable, slots)
        inward, outward = sketches.table(inward_sketch), sketches.table(outward_sketch)
        candidates, faults = _candidates(inward, outward, self.usable, slots), _both_sides(row_faults(self.a))
        for row, j in enumerate(slots):
            self._match_plainly(j, candidates[j])
            column = int(inward[row].argmax())
            if self._is_left(j) and faults and inward[row, column] > _FAULTY / 2:
                self._find_fault(j, [(self.usable[column], fault) for fault in faults])
        left = [j for j in slots if self._is_left(j)]
        if left and self.group.unit_order:
            for j, hypothesis in self._transposed(left):
                self._find_fault(j, [hypothesis])

    def _transposed(self, slots: list[int]) -> Iterator[tuple[int, tuple[int, "_Hypothesis"]]]:
        """Slots that may hold a transposed expert: which expert, and how it is transposed."""
        sketches, best = _Sketches(self.a, self.b, self.usable, slots), {}
        for hypothesis in _both_sides(transpositions(self.a, self.is_interleaved)):
            scores = sketches.table(inward_sketch, hypothesis) + sketches.table(outward_sketch, hypothesis)
            for j, row in zip(slots, scores, strict=True):
                value, column = row.max(dim=0)
                if value > max(_FAULTY, best[j][0] if j in best else 0.0):
                    best[j] = (float(value), (self.usable[int(column)], hypothesis))
        return ((j, hypothesis) for j, (_, hypothesis) in best.items())

    def _is_left(self, j: int) -> bool:
        """Whether nothing explains slot j yet, or so little that a fault may explain more."""
        result = self.results[j]
        return result.kind == "unrelated" or (result.change or 0.0) > _FAULTY

    def _match_plainly(self, j: int, candidates: list[int]) -> None:
        """Match expert j to the candidate that it agrees with most, and to all that come close."""
        other, tried = widened(one_expert(self.b, j)), []
        for i in candidates:
            tried.append((self._relation(self.of_a(i), other), i))
            if tried[-1][0].cosine > _CERTAIN:
                break
        best = max(score.cosine for score, _ in tried)
        for score, i in tried:
            if score.z > RELATED and score.cosine > best - _ALIKE:
                self._match(j, i, _Hypothesis(None), score)
        if j not in self.results:
            # Not the best of several, which would be above chance by being chosen.
            self.results[j] = ExpertComparison(j, "zero" if self._is_empty(j) else "unrelated", z=tried[0][0].z)

    def _find_fault(self, j: int, hypotheses: list[tuple[int, "_Hypothesis"]]) -> None:
        """Match expert j under the fault that makes it agree most, if that explains it."""
        other = widened(one_expert(self.b, j))
        tried = [(self._relation(*fault.apply(self.of_a(i), other)), i, fault) for i, fault in hypotheses]
        score, i, fault = max(tried, key=lambda one: one[0].cosine)
        if score.cosine > _FAULTY and score.z > RELATED:
            self._match(j, i, fault, score)

    def _is_empty(self, j: int) -> bool:
        own = torch.stack([_norm(one_expert(self.a, i)) for i in self.usable])
        return bool(_norm(one_expert(self.b, j)) < _EMPTY * own.median())

    def _relation(self, own: ExpertBank, other: ExpertBank) -> Relation:
        if not self.group.unit_order:
            return self._in_place_relation(own, other)
        return relation(own, other, self.freedom.signs)

    def _match(self, j: int, i: int, hypothesis: "_Hypothesis", score: Relation) -> None:
        """Match the units of expert j to those of expert i exactly, and keep the result if it is the nearest so far."""
        own, other = hypothesis.apply(one_expert(self.a, i), one_expert(self.b, j))
        result, place = self._fit_matched(own, other, 0)
        if self.freedom.scale_degree and (result.change or 0.0) > _IN_PLACE and _scales_differ(own, other):
            balanced = self._fit_matched(own, other, self.freedom.scale_degree)
            if (balanced[0].change or 0.0) < (result.change or 0.0):
                result, place = balanced
        before = self.results.get(j)
        if before is None or before.kind == "unrelated" or (result.change or 0.0) < (before.change or 0.0):
            self._record(j, i, result, place, score, hypothesis.fault)

    def _fit_matched(
        self, own: ExpertBank, other: ExpertBank, scale_degree: int
    ) -> tuple[Fit, Literal["in place", "reordered"]]:
        """The fit of two experts once their units are matched, up to scales of this degree."""
        group = SymmetryGroup(unit_signs=self.freedom.signs, fixed_units=not self.group.unit_order)
        layers = [MoeLayer(None, widened(side).balance_units(scale_degree), None, group) for side in (own, other)]
        a, b = (side.units(0) for side in GaugedLayer.pair(*layers))
        units = (match_units(a, b) if self.group.unit_order else keep_units(a, b)).units
        moved = other.permute_units(SignedPermutation(Permutation(units.permutation.index[None]), units.signs[None]))
        result = fit(own, moved, self.freedom)
        place = "in place" if units.permutation.is_identity else "reordered"
        return replace(result, signs=result.signs or units.is_signed), place

    def _record(
        self,
        j: int,
        i: int,
        result: Fit,
        units: Literal["in place", "reordered"],
        score: Relation,
        fault: Fault | None = None,
    ) -> None:
        self.results[j] = ExpertComparison(
            j, fault.kind if fault else result.kind, i, result.change, units, result.signs, result.scales,
            result.factors, score.z,
        )  # fmt: skip


@dataclass(frozen=True)
class _Hypothesis:
    """No fault, or one: B's expert is A's after it (and a symmetry perhaps), or B's expert after it is A's.

    Args:
        fault: None for none.
        of_b: whose expert it is applied to.
    """

    fault: Fault | None
    of_b: bool = False

    def apply(self, own: ExpertBank, other: ExpertBank) -> tuple[ExpertBank, ExpertBank]:
        """Both experts, one of them rewritten: alike but for a symmetry if the hypothesis is true."""
        if self.fault is None:
            return own, other
        return (own, self.fault.rewrite(other)) if self.of_b else (self.fault.rewrite(own), other)


@dataclass
class _Sketches:
    """Sketches of the experts that are compared."""

    a: ExpertBank
    b: ExpertBank
    known: list[int]
    slots: list[int]

    def table(
        self, sketch: Callable[[ExpertBank], Tensor], hypothesis: _Hypothesis | None = None
    ) -> Float[Tensor, "b a"]:
        """How well every expert of B that is looked at agrees with every one of A under a hypothesis."""
        rewrites: list[Rewrite | None] = [None, None]
        if hypothesis and hypothesis.fault:
            rewrites[hypothesis.of_b] = hypothesis.fault.rewrite
        sides = [(self.a, self.known, rewrites[0]), (self.b, self.slots, rewrites[1])]
        own, others = (
            [sketch(rewrite(one) if rewrite else one) for one in (one_expert(bank, e) for e in numbers)]
            for bank, numbers, rewrite in sides
        )
        return agreements(others, own)


def _both_sides(faults: Iterable[Fault]) -> list[_Hypothesis]:
    """The faults, after a symmetric rewrite or before."""
    return [_Hypothesis(fault, of_b) for fault in faults for of_b in (False, True)]


def _scales_differ(a: ExpertBank, b: ExpertBank) -> bool:
    """Whether norms of up_proj rows against down_proj columns are spread otherwise: units may have been rescaled."""
    ratios = [
        (torch.linalg.vector_norm(one.up_proj[0].float(), dim=1) / one.down_proj[0].float().norm(dim=0)).log()
        for one in (a, b)
    ]
    means, spreads = ([float(statistic(ratio)) for ratio in ratios] for statistic in (torch.mean, torch.std))
    return not (abs(means[0] - means[1]) < _RATIO and abs(spreads[0] - spreads[1]) < _RATIO)


def _norm(expert: ExpertBank) -> Float[Tensor, ""]:
    return torch.stack([tensor.float().norm() for tensor in expert.tensors().values()]).norm()


def _candidates(
    inward: Float[Tensor, "b a"], outward: Float[Tensor, "b a"], known: list[int], slots: list[int]
) -> dict[int, list[int]]:
    """For every slot the experts of A to match: its partner in the best order, the nearest by each sketch, its own."""
    total = inward + outward
    partners = {}
    if total.shape[0] <= total.shape[1]:
        square = torch.full((total.shape[1],) * 2, float(total.min()) - 1.0)
        square[: total.shape[0]] = total
        partners = dict(enumerate(solve_assignment(square).permutation.index.tolist()))
    chosen = {}
    for row, j in enumerate(slots):
        columns = [int(inward[row].argmax()), int(outward[row].argmax()), int(total[row].argmax())]
        numbers = [known[column] for column in (*([partners[row]] if row in partners else []), *columns)]
        chosen[j] = list(dict.fromkeys([*numbers, *([j] if j in known else [])]))
    return chosen


def _state(expert: ExpertBank) -> Literal["zero", "not_finite"] | None:
    """Whether an expert computes nothing, or nothing that is a number."""
    extremes = [bound for tensor in expert.tensors().values() if tensor.numel() for bound in tensor.aminmax()]
    if not all(bool(bound.isfinite()) for bound in extremes):
        return "not_finite"
    down = [part for part in (expert.down_proj, expert.down_bias) if part is not None and part.numel()]
    return "zero" if down and not any(bool(part.any()) for part in down) else None


def name_slots(experts: list[ExpertComparison]) -> list[ExpertComparison]:
    """Experts in another slot are moved; all but the first slot that hold one expert of A are copies."""
    named, held = [], set()
    for expert in experts:
        kind = expert.kind
        if kind in ("identical", "rounded", "changed") and expert.source is not None:
            if expert.source in held:
                kind = "copied"
            elif expert.source != expert.slot:
                kind = "moved"
        held.add(expert.source)
        named.append(replace(expert, kind=kind))
    return named
