"""How similar experts are beside chance: the same comparison after the hidden axis of one of them is permuted.

One permutation goes through gate_proj, up_proj, down_proj and router rows: every unit keeps all of its weights, and
the two experts lose all that they agree on. It has no fixed points and is its own inverse, so it does not matter which
of the two is permuted. A z-score is then the distance from chance in standard errors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank, MoeLayer
from hf_moe_lmc.symmetry import Permutation
from hf_moe_lmc.workers import each

from .assignment import solve_assignment

DRAWS = 16
CERTAIN = 6.0
"""The z from which on weights are related: Student's t of 15 degrees of freedom exceeds it once in 80,000."""

_ROWS = 64  # of a product at least, and
_COSINES = 2**18  # so many entries where rows are short: what follows the product stays in the cache
_ROUNDING = 1e-6  # of a similarity of at most 1


@dataclass(frozen=True)
class NullTest:
    """Similarities of at most 1, and the same under the null.

    Args:
        values: `[*shape]`.
        draws: `[k, *shape]`, of k permutations of the hidden axis.
    """

    values: Float64[Tensor, "*shape"]
    draws: Float64[Tensor, "k *shape"]

    @property
    def z(self) -> Float64[Tensor, "*shape"]:
        """`(value - mean) / (s (1 + 1/k)^(1/2))`; s is the standard deviation of the draws, or the mean one if larger.

        s is known to `(2 k - 2)^(-1/2)` of itself, 18 % with 16 draws, and so is z. Without a relation, z is
        distributed as Student's t with k - 1 degrees of freedom.
        """
        k = len(self.draws)
        variance = self.draws.var(dim=0)
        deviation = torch.maximum(variance, variance.mean()).sqrt().clamp(min=_ROUNDING)
        return (self.values - self.draws.mean(dim=0)) / (deviation * (1 + 1 / k) ** 0.5)

    def select(self, entries: Iterable[int]) -> "NullTest":
        """Some entries of a row of them."""
        chosen = list(entries)
        return NullTest(self.values[chosen], self.draws[:, chosen])

    def order_gain(self, order: Permutation) -> "NullTest":
        """How much an order gains over the best one in which every expert has another partner, a scalar.

        Under the null, each draw's best order takes its place. `[E, E]`, the order as in `ExpertMatching`.
        """
        gains = [_gain(table, solve_assignment(table).permutation) for table in self.draws]
        return NullTest(_gain(self.values, order), torch.stack(gains))


def expert_similarities(
    reference: MoeLayer,
    other: MoeLayer,
    pairs: Sequence[tuple[int, int]],
    units: int,
    hidden: int,
    shared: bool = False,
) -> NullTest:
    """Similarity of expert i of one layer and expert j of the other for every pair (i, j), `[pairs]`.

    The mean, over the strongest units of both, of the greatest cosine with any unit of the other expert, weighted by
    the squared norm; of free signs, the better counts. Units are compared in the gauge, in some hidden coordinates; the
    result depends neither on the order of units nor on signs and scales, and is the same for (b, a) as for (a, b). The
    layers may have different numbers of experts and units.

    Args:
        reference, other: layers of one hidden size.
        pairs: (i, j).
        units: so many of each expert's are looked at, beside all of the other's.
        hidden: in so many hidden coordinates, evenly spread.
        shared: whether the shared experts are meant.
    """
    a, b = (_Side.of(layer, hidden, shared) for layer in (reference, other))
    values = (_sampled(a, b, pairs, units) + _sampled(b, a, [(j, i) for i, j in pairs], units)) / 2
    return NullTest(values[:, 0], values[:, 1:].T)


def router_similarities(reference: MoeLayer, other: MoeLayer) -> NullTest | None:
    """`<W_i, W'_j> / (|W| |W'|)` of the router rows in the gauge, `[E, E]`; None without routers."""
    a, b = (_in_float(layer).router_in_gauge() for layer in (reference, other))
    if a is None or b is None:
        return None
    a, b = (x.weight / x.weight.norm().clamp(min=torch.finfo(x.weight.dtype).tiny) for x in (a, b))
    tables = torch.stack([a[:, order] @ b.T for order in _involutions(a.shape[1]).to(a.device)]).double().cpu()
    return NullTest(tables[0], tables[1:])


def matrix_similarity(a: Float[Tensor, "m n"], b: Float[Tensor, "m n"]) -> NullTest:
    """`<A, B> / (|A| |B|)` of two matrices as they stand, a scalar; the longer of their axes is permuted."""
    a, b = (x.T if len(x) > x.shape[1] else x for x in (a, b))
    norm = (a.norm() * b.norm()).clamp(min=torch.finfo(a.dtype).tiny)
    values = torch.stack([(a[:, order] * b).sum() for order in _involutions(a.shape[1]).to(a.device)]) / norm
    return NullTest(values[0].double().cpu(), values[1:].double().cpu())


@dataclass(frozen=True)
class _Sample:
    """Units of n experts under the identity and every permutation: unit vectors, and the weights of the units."""

    kept: Float[Tensor, "n k m d"]
    signed: Float[Tensor, "n k m s"]
    weights: Float[Tensor, "n m"]

    @classmethod
    def joined(cls, samples: Sequence["_Sample"]) -> "_Sample":
        """All experts of `samples`."""
        return cls(*(torch.cat([getattr(x, name) for x in samples]) for name in ("kept", "signed", "weights")))

    def similarities(self, kept: Float[Tensor, "F d"], signed: Float[Tensor, "F s"]) -> Float[Tensor, "n k"]:
        """Weighted means of the greatest cosines with the units of one expert, for all permutations."""
        rows = max(_ROWS, _COSINES // max(1, len(kept)))
        blocks = zip(*(part.flatten(0, 2).split(rows) for part in (self.kept, self.signed)), strict=True)
        best = torch.cat([(a @ kept.T + (b @ signed.T).abs_()).amax(dim=1) for a, b in blocks])
        total = self.weights.sum(dim=1, keepdim=True)
        weights = self.weights / total.clamp(min=torch.finfo(total.dtype).tiny)
        means = (best.view(self.kept.shape[:3]) @ weights[..., None])[..., 0]
        if not (kept.any() or signed.any()):  # two experts without weights are one and the same
            means[:, 0] = torch.where(total[:, 0] == 0, 1.0, means[:, 0])
        return means


@dataclass(frozen=True)
class _Side:
    """The experts of one layer in a few hidden coordinates, and the symmetries of their units."""

    bank: ExpertBank
    signs: bool
    degree: int
    outputs: Tensor | None = None
    normalised: bool = False

    @classmethod
    def of(cls, layer: MoeLayer, hidden: int, shared: bool) -> "_Side":
        group, bank = layer.group, layer.shared_experts if shared else layer.experts
        if bank is None:
            raise ValueError("a layer without shared experts")
        inward, outward = (_spread(size, hidden) for size in (bank.up_proj.shape[2], bank.down_proj.shape[1]))
        bank = replace(
            bank,
            up_proj=bank.up_proj[:, :, inward],
            gate_proj=None if bank.gate_proj is None else bank.gate_proj[:, :, inward],
            down_proj=bank.down_proj[:, outward],
            down_bias=None,
        )
        if shared:
            return cls(bank, group.shared_unit_signs, group.shared_unit_scale_degree)
        outputs = layer.router.per_expert_scale if layer.router else None
        return cls(bank, group.unit_signs, group.unit_scale_degree, outputs, group.expert_output_scale)

    def expert(self, e: int) -> ExpertBank:
        """One expert in the gauge, in float32 or better."""
        one = self.bank.map(lambda tensor: tensor[e : e + 1].to(torch.promote_types(tensor.dtype, torch.float32)))
        outputs = None if self.outputs is None else self.outputs[e : e + 1]
        return one.rescale(one.gauge_scales(self.degree, outputs, self.normalised))

    def rows(self, e: int) -> tuple[Float[Tensor, "F d"], Float[Tensor, "F s"]]:
        """The units of an expert as unit vectors: the part that signs keep, and the other."""
        kept, signed = self._terms(self.expert(e))
        lengths = _lengths(kept, signed)
        return kept[0] / lengths[0], signed[0] / lengths[0]

    def sample(self, e: int, units: int) -> _Sample:
        """The strongest units of an expert under all permutations of the hidden axis."""
        expert = self.expert(e)
        lengths = _lengths(*self._terms(expert))[0, :, 0]
        strongest = lengths.topk(min(units, len(lengths))).indices
        inward, outward = (
            _involutions(size).to(lengths.device) for size in (expert.up_proj.shape[2], expert.down_proj.shape[1])
        )
        count = len(inward)
        permuted = ExpertBank(
            up_proj=expert.up_proj[0, strongest][:, inward].transpose(0, 1),
            down_proj=expert.down_proj[0][:, strongest][outward],
            gate_proj=None if expert.gate_proj is None else expert.gate_proj[0, strongest][:, inward].transpose(0, 1),
            up_bias=None if expert.up_bias is None else expert.up_bias[:, strongest].expand(count, -1),
            gate_bias=None if expert.gate_bias is None else expert.gate_bias[:, strongest].expand(count, -1),
        )
        kept, signed = (part / lengths[strongest, None] for part in self._terms(permuted))
        return _Sample(kept[None], signed[None], lengths[None, strongest] ** 2)

    def _terms(self, experts: ExpertBank) -> tuple[Float[Tensor, "E F d"], Float[Tensor, "E F s"]]:
        kept, signed = experts.unsigned_unit_terms(), experts.signed_unit_terms()
        if not self.signs:
            kept, signed = [*kept, *signed], []
        nothing = experts.up_proj[:, :, :0]
        return torch.cat([nothing, *kept], dim=2), torch.cat([nothing, *signed], dim=2)


def _sampled(side: _Side, other: _Side, pairs: Sequence[tuple[int, int]], units: int) -> Float64[Tensor, "n k"]:
    """`_similarities` of experts i, of which some units are looked at, and experts j, for every pair (i, j)."""
    chosen = sorted({i for i, _ in pairs})
    samples = dict(zip(chosen, each(lambda i: side.sample(i, units), chosen), strict=True))
    rows = {j: tuple(sorted({i for i, own in pairs if own == j})) for j in sorted({j for _, j in pairs})}
    joined = {experts: _Sample.joined([samples[i] for i in experts]) for experts in dict.fromkeys(rows.values())}
    similar = each(lambda j: joined[rows[j]].similarities(*other.rows(j)).double().cpu(), rows)
    places = {pair: n for n, pair in enumerate((i, j) for j, experts in rows.items() for i in experts)}
    return torch.cat(similar)[[places[pair] for pair in pairs]]


def _lengths(kept: Float[Tensor, "E F d"], signed: Float[Tensor, "E F s"]) -> Float[Tensor, "E F 1"]:
    lengths = torch.hypot(torch.linalg.vector_norm(kept, dim=2), torch.linalg.vector_norm(signed, dim=2))
    return lengths.clamp(min=torch.finfo(lengths.dtype).tiny)[..., None]


@cache
def _involutions(size: int) -> Int64[Tensor, "k n"]:
    """The identity, and seeded permutations that exchange pairs of n coordinates; of an odd number, one stays."""
    generator, orders = torch.Generator().manual_seed(0), [torch.arange(size)]
    for _ in range(DRAWS):
        pairs = torch.randperm(size, generator=generator)[: size // 2 * 2].view(-1, 2)
        orders.append(orders[0].index_copy(0, pairs.flatten(), pairs.flip(1).flatten()))
    return torch.stack(orders)


def _spread(size: int, count: int) -> slice:
    """`count` of `size` coordinates, or all, evenly spread."""
    step = max(1, size // count)
    return slice(0, min(size, count * step), step)


def _gain(table: Float64[Tensor, "E E"], order: Permutation) -> Float64[Tensor, ""]:
    rows = torch.arange(len(table))
    forbidden = table.clone()
    forbidden[rows, order.index] = table.min() - len(table) * (table.max() - table.min()) - 1
    second = solve_assignment(forbidden).permutation
    return table[rows, order.index].sum() - table[rows, second.index].sum()


def _in_float(layer: MoeLayer) -> MoeLayer:
    router = layer.router
    if router is None:
        return layer
    return replace(layer, router=router.map(lambda tensor: tensor.to(torch.promote_types(tensor.dtype, torch.float32))))
