"""Whether two experts are related or no nearer than chance: z-scores against an exact null, without any threshold fit.

The null is that the hidden axis of one expert is permuted at random, the same for all its rows. For rows X and Y in
partners' order, centred and normalised, `T = sum_r <x_r, y_r>` then has mean 0 and variance
`<X X^T, Y Y^T> / (H - 1)` (Hoeffding's combinatorial central limit theorem), so `z = T / sqrt(variance)` is close to a
standard normal one for unrelated weights of any kind.

Partners may be chosen at will as long as the rows that are tested had no say: units matched by down_proj are tested on
gate_proj and up_proj, and the other way round. Nothing here depends on the order, signs or scales of units, and nothing
on the order of experts.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank

RELATED = 5.0
"""The z above which weights are related: one pair of unrelated ones in three million exceeds it."""

_UNITS = 64


@dataclass(frozen=True)
class Relation:
    """How much more two experts agree than chance would have it.

    Args:
        z: standard deviations above chance.
        cosine: mean cosine of the tested rows.
    """

    z: float
    cosine: float


@dataclass(frozen=True)
class Rows:
    """The units of one expert as centred rows of norm 1 over the hidden axis.

    Args:
        inward: of gate_proj (if there is one) and up_proj, `[F, H]` each.
        outward: columns of down_proj, `[F, D]`.
    """

    inward: tuple[Float[Tensor, "F H"], ...]
    outward: Float[Tensor, "F D"]

    @classmethod
    def of(cls, expert: ExpertBank, units: Int[Tensor, " m"] | None = None) -> "Rows":
        """The rows of a bank of one expert, of all `units` or of some."""
        inward = [part[0] for part in (expert.gate_proj, expert.up_proj) if part is not None]
        rows = (part if units is None else part[units] for part in (*inward, expert.down_proj[0].mT))
        *inward, outward = (_normalised(part) for part in rows)
        return cls(tuple(inward), outward)

    def at(self, units: Int[Tensor, " m"]) -> "Rows":
        """The rows of some units."""
        return Rows(tuple(part[units] for part in self.inward), self.outward[units])


def strongest_units(expert: ExpertBank) -> Int[Tensor, " m"]:
    """Up to 64 units of a bank of one expert, chosen by norms that no sign, scale or order of units changes."""
    inward = torch.linalg.vector_norm(expert.up_proj[0], dim=1)
    strength = inward * torch.linalg.vector_norm(expert.down_proj[0], dim=0)
    if expert.gate_proj is not None:
        strength = strength * torch.linalg.vector_norm(expert.gate_proj[0], dim=1)
    return strength.topk(min(_UNITS, len(strength))).indices


def relation(a: Rows, b: Rows, signs: bool) -> Relation:
    """The relation of some units of one expert to their nearest among all units of another.

    Args:
        a: of the units looked at.
        b: of all units of the other.
        signs: whether a unit's up_proj row and down_proj column may both change sign.
    """
    outward = a.outward @ b.outward.T
    by_outward = _nearest(outward.abs() if signs else outward)
    inward = sum((x @ y.T for x, y in zip(a.inward[:-1], b.inward[:-1], strict=True)), torch.zeros_like(outward))
    up = a.inward[-1] @ b.inward[-1].T
    by_inward = _nearest(inward + (up.abs() if signs else up))
    return partners_relation(
        a,
        b.at(by_outward),
        b.at(by_inward),
        signs_of(_at(outward, by_outward)) if signs else None,
        signs_of(_at(up, by_inward)) if signs else None,
    )


def partners_relation(
    a: Rows,
    by_outward: Rows,
    by_inward: Rows,
    outward_signs: Float[Tensor, " m"] | None = None,
    inward_signs: Float[Tensor, " m"] | None = None,
) -> Relation:
    """The relation of units to given partners.

    Args:
        a: units of one expert.
        by_outward: their partners, found by down_proj, which are tested on gate_proj and up_proj.
        by_inward: their partners, found by gate_proj and up_proj, which are tested on down_proj.
        outward_signs, inward_signs: of the partners, where signs are free.
    """
    *gates, up = by_outward.inward
    up = up if outward_signs is None else up * outward_signs[:, None]
    out = by_inward.outward if inward_signs is None else by_inward.outward * inward_signs[:, None]
    tests = [(torch.cat(a.inward), torch.cat([*gates, up])), (a.outward, out)]
    sums = [trace_test(x, y) for x, y in tests]
    total, variance = (math.fsum(part) for part in zip(*sums, strict=True))
    rows = sum(len(x) for x, _ in tests)
    return Relation(total / math.sqrt(variance) if variance > 0 else 0.0, total / rows)


def trace_test(x: Float[Tensor, "R H"], y: Float[Tensor, "R H"]) -> tuple[float, float]:
    """`T = sum_r <x_r, y_r>` of centred rows, and its variance if the axis of y were permuted at random."""
    variance = ((x @ x.T) * (y @ y.T)).double().sum().item() / max(1, x.shape[1] - 1)
    return (x * y).double().sum().item(), max(variance, 0.0)


def signs_of(dots: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """-1 of what is negative, else 1."""
    return torch.where(dots < 0, -1.0, 1.0).to(dots)


def pooled(scores: list[float]) -> float:
    """`sum z / sqrt(n)`: the z of several at once (Stouffer); 0 of none."""
    return math.fsum(scores) / math.sqrt(len(scores)) if scores else 0.0


def _normalised(rows: Float[Tensor, "R H"]) -> Float[Tensor, "R H"]:
    rows = rows - rows.mean(dim=1, keepdim=True)
    return torch.nn.functional.normalize(rows, dim=1)


def _nearest(similarity: Float[Tensor, "m F"]) -> Int[Tensor, " m"]:
    return similarity.argmax(dim=1)


def _at(similarity: Float[Tensor, "m F"], columns: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
    return similarity.take_along_dim(columns[:, None], dim=1)[:, 0]
