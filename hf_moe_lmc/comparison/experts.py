"""The experts of one bank against those of another: what every expert of B is in terms of A."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch

from hf_moe_lmc.matching import CERTAIN, GaugedLayer, NullTest, expert_similarities
from hf_moe_lmc.matching.unit_matching import keep_units, match_units
from hf_moe_lmc.moe import ExpertBank, MoeLayer, SymmetryGroup
from hf_moe_lmc.symmetry import Permutation, SignedPermutation

from .candidates import candidates, glimpsed_distances
from .faults import PROJECTIONS, FaultKind, find_faults
from .fit import NEAR, Fit, Kind, fit, one_expert

_FAR = 0.5  # relative distance from which on a fault may explain more
_ALIKE = 0.03  # experts whose cosines differ by less are both matched
_EMPTY = 0.03  # norm of a projection, relative to those of A, below which it is as good as zero
_GLANCE, _LOOK = (2, 64), (8, 128)  # units and hidden coordinates of a z; closer where that leaves a doubt
_FIRST = 64  # units that are looked at of experts in place
_ENTRIES = 2**20  # of the similarities of small experts, of which more units are looked at


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
        foreign, is_rounding: see `Fit`; whether it changed by rounding to another dtype.
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
    foreign: tuple[str, ...] = ()
    is_rounding: bool = False
    z: float | None = None

    @property
    def is_mixed(self) -> bool:
        """Whether a projection is not its source's."""
        return any(name.endswith("proj") for name in self.foreign)

    @property
    def is_far(self) -> bool:
        """Whether more of it changed than stayed, so that it may resemble several experts of A alike."""
        return (self.change or 0.0) > _FAR

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


def compare_experts(a: ExpertBank, b: ExpertBank, group: SymmetryGroup) -> list[ExpertComparison]:
    """What every expert of bank b is in terms of bank a, experts of the same shapes; kinds as if all were in place.

    Experts whose units stand at their places, in whatever slot, are recognised by a few rows and compared in one pass.
    Of all others, sketches that see no order, sign or scale tell which to match, units are matched exactly, and faults
    of storage are tried where that leaves a large distance.

    Args:
        a, b: as stored; NaN and infinite values are allowed.
        group: what leaves the function of their units alone.
    """
    return _Banks(a, b, group).compare()


@dataclass
class _Banks:
    """The work on one pair of banks."""

    a: ExpertBank
    b: ExpertBank
    group: SymmetryGroup
    results: dict[int, ExpertComparison] = field(default_factory=dict)
    uneven: set[int] = field(default_factory=set)  # slots with a projection that is far from its source's

    def compare(self) -> list[ExpertComparison]:
        slots = range(self.b.num_experts)
        for j in slots:
            if kind := _state(one_expert(self.b, j)):
                self.results[j] = ExpertComparison(j, kind)
        self._recognise_zero([j for j in slots if j in self.results and self.results[j].kind == "zero"])
        if self.a.num_units:
            self._recognise_in_place([j for j in slots if j not in self.results])
            self._match([j for j in slots if j not in self.results])
        return [self.results.get(j) or ExpertComparison(j, "unrelated") for j in slots]

    @cached_property
    def states(self) -> list[Literal["zero", "not_finite"] | None]:
        """Those of A's experts."""
        return [_state(one_expert(self.a, i)) for i in range(self.a.num_experts)]

    @property
    def known(self) -> list[int]:
        """The experts of A that can be recognised."""
        return [i for i, state in enumerate(self.states) if state is None]

    def _recognise_zero(self, slots: list[int]) -> None:
        """Experts that are zero in A too."""
        zeros = [i for i, state in enumerate(self.states) if state == "zero"] if slots else []
        for j in slots:
            if equal := [i for i in zeros if torch.equal(self.a.down_proj[i], self.b.down_proj[j])]:
                i = j if j in equal else equal[0]
                zeros.remove(i)
                self._record(j, i, Fit("identical"), "in place")

    def _recognise_in_place(self, slots: list[int]) -> None:
        """Experts whose units stand at their places, in whatever slot."""
        if not slots:
            return
        distances, sources = glimpsed_distances(self.a, self.b), {}
        for j in slots:
            # Of equals, such as experts that A itself repeats, the one at its own place, or one that is not held yet.
            nearest = torch.nonzero(distances[j] <= distances[j].min() + 1e-6)[:, 0].tolist()
            i = j if j in nearest else min(nearest, key=lambda i: (i in sources.values(), i))
            if distances[j, i] > 2 * NEAR:
                continue
            result = fit(one_expert(self.a, i), one_expert(self.b, j), self.group)
            if result.worst <= NEAR:
                sources[j] = i
                self._record(j, i, result, "in place")
        if sources:
            own, other = _first_units(self.a), _first_units(self.b)
            scores = self._similarities(own, other, [(i, j) for j, i in sources.items()], _GLANCE).z.tolist()
            for j, z in zip(sources, scores, strict=True):
                self.results[j] = replace(self.results[j], z=z)

    def _match(self, slots: list[int]) -> None:
        """Experts whose units do not stand at their places, or which are stored wrongly."""
        if not slots or not self.known:
            return
        chosen = candidates(self.a, self.b, self.known, slots)
        tried: dict[tuple[int, int], tuple[float, float]] = {}
        doubtful = slots
        for look in (_GLANCE, _LOOK):
            pairs = [(i, j) for j in doubtful for i in chosen[j]]
            similarities = self._similarities(self.a, self.b, pairs, look)
            figures = zip(similarities.values.tolist(), similarities.z.tolist(), strict=True)
            tried |= zip(pairs, figures, strict=True)
            doubtful = [j for j in doubtful if max(tried[i, j][1] for i in chosen[j]) < 2 * CERTAIN]
            if not doubtful:
                break
        for j in slots:
            best = max(tried[i, j][0] for i in chosen[j])
            for i in chosen[j]:
                cosine, z = tried[i, j]
                if z >= CERTAIN and cosine > best - _ALIKE:
                    self._match_units(j, i, z)
            # Not the best z of several, which would be above chance by being chosen.
            self.results.setdefault(j, ExpertComparison(j, "unrelated", z=tried[chosen[j][0], j][1]))
        left = [j for j in slots if self.results[j].kind == "unrelated" or j in self.uneven]
        if left:
            for j, i, both in find_faults(self.a, self.b, self.known, left, self.group.unit_signs):
                if both is None:
                    self.results[j] = ExpertComparison(j, "transposed", i)
                    continue
                result = fit(both.own, both.other, SymmetryGroup(unit_scale_degree=self.group.unit_scale_degree))
                if result.worst <= NEAR:
                    z = self._similarities(both.own, both.other, [(0, 0)]).z.item()
                    result = replace(result, signs=result.signs or both.signs)
                    self._record(j, i, result, "in place" if both.in_place else "reordered", z, both.kind)
        for j in left:
            if (self.results[j].kind == "unrelated" or j in self.uneven) and self._is_empty(j):
                self.results[j] = ExpertComparison(j, "zero", z=self.results[j].z)

    def _is_empty(self, j: int) -> bool:
        """Whether a projection of slot j is next to nothing beside those of A."""
        own = one_expert(self.b, j).tensors()
        return any(own[name].float().norm() < _EMPTY * norm for name, norm in self._usual_norms.items())

    @cached_property
    def _usual_norms(self) -> dict[str, float]:
        """The median norms of A's projections."""
        named = {
            name: [tensor[i] for i in self.known] for name, tensor in self.a.tensors().items() if name in PROJECTIONS
        }
        return {name: float(torch.stack([x.float().norm() for x in own]).median()) for name, own in named.items()}

    def _similarities(
        self, a: ExpertBank, b: ExpertBank, pairs: Sequence[tuple[int, int]], look: tuple[int, int] = _LOOK
    ) -> NullTest:
        """Beside chance, by the measure of alignments."""
        own, other = (MoeLayer(None, bank, None, self.group) for bank in (a, b))
        units, hidden = look
        units = max(units, _ENTRIES // (3 * self.a.num_units * min(hidden, a.up_proj.shape[2])))
        return expert_similarities(own, other, pairs, units, hidden)

    def _match_units(self, j: int, i: int, z: float) -> None:
        """Match the units of expert j to those of expert i exactly, and keep the result if it is the nearest so far."""
        own, other = one_expert(self.a, i), one_expert(self.b, j)
        a, b = (
            side.units(0) for side in GaugedLayer.pair(*(MoeLayer(None, x, None, self.group) for x in (own, other)))
        )
        units = (match_units(a, b) if self.group.unit_order else keep_units(a, b)).units
        moved = other.permute_units(SignedPermutation(Permutation(units.permutation.index[None]), units.signs[None]))
        result = fit(own, moved, self.group)
        before = self.results.get(j)
        if before is None or (result.change or 0.0) < (before.change or 0.0):
            place = "in place" if units.permutation.is_identity else "reordered"
            self._record(j, i, replace(result, signs=result.signs or units.is_signed), place, z)

    def _record(
        self,
        j: int,
        i: int,
        result: Fit,
        units: Literal["in place", "reordered"],
        z: float | None = None,
        fault: FaultKind | None = None,
    ) -> None:
        self.results[j] = ExpertComparison(
            j,
            fault or result.kind,
            i,
            result.change,
            units,
            result.signs,
            result.scales,
            result.factors,
            result.foreign,
            result.kind == "rounded",
            z,
        )
        (self.uneven.add if result.worst > _FAR else self.uneven.discard)(j)


def _first_units(experts: ExpertBank) -> ExpertBank:
    """The banks of a few units."""
    tensors = experts.tensors()
    few = {name: tensors[name][:, :_FIRST] for name in tensors if name not in ("down_proj", "down_bias")}
    return replace(experts, **few, down_proj=experts.down_proj[:, :, :_FIRST])


def _state(expert: ExpertBank) -> Literal["zero", "not_finite"] | None:
    """Whether a value is no number, or a projection has none but zeros."""
    extremes = {name: tensor.aminmax() for name, tensor in expert.tensors().items() if tensor.numel()}
    if not all(bool(bound.isfinite()) for bounds in extremes.values() for bound in bounds):
        return "not_finite"
    return None if all(any(bounds) for name, bounds in extremes.items() if name in PROJECTIONS) else "zero"
