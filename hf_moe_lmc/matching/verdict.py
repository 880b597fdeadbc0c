"""The evidence of aligned layers, expert by expert, and the verdict of a pair: what it says to do next."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from hf_moe_lmc.moe import ExpertBank
from hf_moe_lmc.symmetry import Permutation

from .distance import GaugedLayer
from .expert_order import ExpertMatching
from .null import CERTAIN, NullTest, expert_similarities, router_similarities
from .unit_matching import UnitMatching

Label = Literal["in_place", "aligned", "order_immaterial", "partly_related", "unrelated"]

_FIXED = 0.99
_ORDERED = 12  # experts among which the order is tested
# Units, hidden coordinates, and entries up to which more units of small experts are looked at: at a glance, and closer
# where that leaves a doubt.
_LOOKS = ((2, 64, 2**16), (8, 128, 2**20))
_CLEAR = 2 * CERTAIN


@dataclass(frozen=True)
class ExpertEvidence:
    """How an expert of the reference, in its slot, and its partner belong together.

    Args:
        slot: number of the reference's expert.
        source: number of the other's.
        shared: whether both are shared experts.
        z: their similarity after matching beside chance; see `hf_moe_lmc.matching.null`.
        fixed: the share of the squared weights whose units stay in their places.
    """

    slot: int
    source: int
    shared: bool
    z: float
    fixed: float

    @property
    def related(self) -> bool:
        """Whether they are more alike than chance explains."""
        return self.z >= CERTAIN

    @property
    def in_place(self) -> bool:
        """Whether the alignment leaves the other's expert as it is."""
        return self.slot == self.source and self.fixed >= _FIXED


@dataclass(frozen=True)
class LayerEvidence:
    """Figures of one layer's alignment.

    Args:
        expert_method: the route that decided the expert order.
        certified: whether the order is proven optimal over all orders and units.
        expert_margin, gate_agreement: see `ExpertMatching`.
        solved_pairs: pairs of experts whose units were matched for the order, of E^2.
        unit_solvers: solver -> how many of the layer's unit assignments it solved.
        similarity: sum over all matched units, shared experts included.
        gap: upper limit of how much that sum is exceeded by any other units' order, given that of experts.
        unit_margin_low, unit_margin_median: 10 % quantile and median of the units' margins; see `UnitMatching`.
        random_distance: root of the mean squared distance of the layers over all moves of units, in this expert order.
        order_z: gain of the order over the best one without any of its pairs, beside chance, by units or router rows;
            None where there is no choice. Of more than 12 experts, 12 are looked at.
        experts: the routed experts, then the shared ones.
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
    random_distance: float
    order_z: float | None
    experts: tuple[ExpertEvidence, ...]

    @property
    def label(self) -> Label:
        """The verdict of the layer.

        "unrelated" or "partly_related" where no or not every expert is related to its partner; "in_place" where the
        alignment leaves all experts, routed and shared, as they are; "order_immaterial" where no order brings experts
        closer than another; else "aligned".
        """
        related = [expert.related for expert in self.experts]
        if not any(related):
            return "unrelated"
        if not all(related):
            return "partly_related"
        if all(expert.in_place for expert in self.experts):
            return "in_place"
        return "aligned" if self.order_z is None or self.order_z >= CERTAIN else "order_immaterial"

    @property
    def unrelated(self) -> int:
        """The number of experts whose partners are not related to them."""
        return sum(not expert.related for expert in self.experts)


@dataclass(frozen=True)
class Verdict:
    """The verdict of a pair: that of every layer, none averaged with another.

    Args:
        layers: name -> evidence; one at least.
    """

    layers: Mapping[str, LayerEvidence]

    @property
    def counts(self) -> dict[Label, int]:
        """Label -> number of layers, those that occur."""
        found = Counter(evidence.label for evidence in self.layers.values())
        return {label: found[label] for label in get_args(Label) if found[label]}

    @property
    def sentence(self) -> str:
        """What to do next."""
        counts, layers = self.counts, len(self.layers)
        if counts.get("unrelated") == layers:
            return "These weights are unrelated; a merge will not work."
        if "unrelated" in counts or "partly_related" in counts:
            return "A merge will damage the layers that hold unrelated experts; evaluate it before you use it."
        if counts.get("in_place") == layers:
            return (
                "These models already have the same expert order: alignment changes nothing, any merging tool will do."
            )
        if "aligned" in counts:
            return "The order of experts and units differed and was matched: merge with this alignment."
        return "The units were matched; the order of experts makes no measurable difference."

    def text(self) -> str:
        """One line: how many layers have which label, the layers with unrelated experts, and what to do next."""
        total = len(self.layers)
        parts = [f"{count} of {total} layers: {label.replace('_', ' ')}" for label, count in self.counts.items()]
        partly = [
            f"{name}: {evidence.unrelated} of {len(evidence.experts)} experts unrelated"
            for name, evidence in self.layers.items()
            if evidence.label == "partly_related"
        ]
        more = [f"and {len(partly) - 3} more layers"] if len(partly) > 3 else []
        return f"verdict: {'; '.join([*parts, *partly[:3], *more])}. {self.sentence}"

    def to_json(self) -> dict[str, Any]:
        """The verdict under stable names."""
        return {
            "sentence": self.sentence,
            "counts": self.counts,
            "layers": [
                {
                    "name": name,
                    "label": evidence.label,
                    "order_z": evidence.order_z,
                    "experts": [
                        {
                            "slot": expert.slot,
                            "source": expert.source,
                            "shared": expert.shared,
                            "z": expert.z,
                            "related": expert.related,
                        }
                        for expert in evidence.experts
                    ],
                }
                for name, evidence in self.layers.items()
            ],
        }


def gather_evidence(
    reference: GaugedLayer,
    other: GaugedLayer,
    experts: ExpertMatching,
    units: Sequence[UnitMatching],
    shared: Sequence[UnitMatching],
    shared_order: Permutation | None,
    fixed_distance: float,
) -> LayerEvidence:
    """The evidence of an alignment.

    Args:
        reference, other: the layers, the other with its shared experts in `shared_order`.
        experts, units, shared: their matchings.
        fixed_distance: `fixed_squared_distance` under that order.
    """
    matchings = [*units, *shared]
    margins = torch.cat([matching.margins for matching in matchings]).double().sort().values
    z, shared_z, order_z = _z_scores(reference, other, experts.order)
    orders = (order.index.tolist() for order in (experts.order, shared_order) if order)
    rows = [pair for order in orders for pair in enumerate(order)]
    return LayerEvidence(
        expert_method=experts.method,
        certified=experts.certified,
        expert_margin=experts.margin,
        gate_agreement=experts.gate_agreement,
        solved_pairs=len(experts.pairs),
        unit_solvers=dict(Counter(matching.solver for matching in matchings)),
        similarity=math.fsum(matching.similarity for matching in matchings),
        gap=math.fsum(matching.gap for matching in matchings),
        unit_margin_low=margins[len(margins) // 10].item(),
        unit_margin_median=margins[len(margins) // 2].item(),
        random_distance=math.sqrt(
            fixed_distance + max(0.0, math.fsum(matching.random_squared_distance for matching in matchings))
        ),
        order_z=order_z,
        experts=tuple(
            ExpertEvidence(slot, source, n >= len(units), score, matching.fixed)
            for n, ((slot, source), score, matching) in enumerate(zip(rows, [*z, *shared_z], matchings, strict=True))
        ),
    )


def _z_scores(
    reference: GaugedLayer, other: GaugedLayer, order: Permutation
) -> tuple[list[float], list[float], float | None]:
    """Of every routed expert, every shared expert, and the order: at a glance, and closer what that leaves in doubt."""
    a, b = reference.layer, other.layer
    pairs = list(enumerate(order.index.tolist()))
    shared = [(e, e) for e in range(a.shared_experts.num_experts if a.shared_experts else 0)]
    choice = a.router is not None and len(pairs) > 1 and not a.group.fixed_experts
    tested = pairs[:: math.ceil(len(pairs) / _ORDERED)] if choice else []
    table = [(i, j) for i, _ in tested for _, j in tested]
    routers = router_similarities(a, b) if choice else None
    z, shared_z, order_z = dict.fromkeys(pairs, -math.inf), dict.fromkeys(shared, -math.inf), None
    # Small experts are looked at whole, once.
    looks = {tuple(_look(bank, *look) for bank in (a.experts, a.shared_experts) if bank): None for look in _LOOKS}
    for own, *common in looks:
        doubtful, doubtful_shared = (
            [pair for pair, score in scores.items() if score < _CLEAR] for scores in (z, shared_z)
        )
        if order_z is not None and order_z >= _CLEAR:
            table = []
        if doubtful or table:
            every = list(dict.fromkeys([*doubtful, *table]))
            similarities = expert_similarities(a, b, every, *own)
            if doubtful:
                z.update(zip(doubtful, similarities.select(range(len(doubtful))).z.tolist(), strict=True))
            if table:
                gains = [_order_test(similarities.select(map(every.index, table)), len(tested))]
                gains += [routers.order_gain(order)] if routers else []
                order_z = max(gain.z.item() for gain in gains)
        if doubtful_shared:
            similarities = expert_similarities(a, b, doubtful_shared, *common[0], shared=True)
            shared_z.update(zip(doubtful_shared, similarities.z.tolist(), strict=True))
    return list(z.values()), list(shared_z.values()), order_z


def _look(experts: ExpertBank, units: int, hidden: int, entries: int) -> tuple[int, int]:
    """More units of small experts than of large ones."""
    hidden = min(hidden, experts.up_proj.shape[2])
    return min(experts.num_units, max(units, entries // (3 * experts.num_units * hidden))), hidden


def _order_test(table: NullTest, size: int) -> NullTest:
    """The gain of the order of which `table` lists the similarities, row by row."""
    square = NullTest(table.values.view(size, size), table.draws.view(-1, size, size))
    return square.order_gain(Permutation.identity(size))
