"""The units of one expert as rows, as they are compared when units are matched."""

from dataclasses import dataclass, replace
from functools import cached_property, reduce

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank

_BLOCK_BYTES = 2**18  # of rows that are worked on together: they stay in the cache from one operation to the next


@dataclass(frozen=True)
class Units:
    """All weights of each unit of one expert, in two parts: those that its sign keeps and those that it changes.

    Args:
        kept: `[F, d]`, the same under either sign.
        signed: `[F, s]`, changes sign with the unit; None where no sign is free.
        stored: a dtype that holds all values, the one that they were stored in.
    """

    kept: Float[Tensor, "F d"]
    signed: Float[Tensor, "F s"] | None
    stored: torch.dtype

    @classmethod
    def of(cls, experts: ExpertBank, expert: int, signs: bool, dtype: torch.dtype) -> "Units":
        """The units of one expert of the bank; only this expert is brought to `dtype`."""
        one = experts.map(lambda tensor: tensor[expert : expert + 1])
        kept, signed = ([term[0] for term in terms] for terms in (one.unsigned_unit_terms(), one.signed_unit_terms()))
        stored = reduce(torch.promote_types, (term.dtype for term in (*kept, *signed)))
        if signs:
            return cls(_joined([signed[0][:, :0], *kept], dtype), _joined(signed, dtype), stored)
        return cls(_joined([*kept, *signed], dtype), None, stored)

    @cached_property
    def squares(self) -> Float[Tensor, " F"]:
        """`|x_i|^2`."""
        parts = [part for part in (self.kept, self.signed) if part is not None]
        return torch.stack([torch.linalg.vector_norm(part, dim=1) for part in parts]).square().sum(dim=0)

    def similarity(self, other: "Units") -> Float[Tensor, "F F"]:
        """`S_ij = <x_i, y_j>`, of both signs the better: `<kept, kept'> + |<signed, signed'>|`.

        With it `|x_i - y_j|^2 = |x_i|^2 + |y_j|^2 - 2 S_ij`, so over permutations the sum of squared distances is least
        where the sum of similarities is greatest.
        """
        stored = torch.promote_types(self.stored, other.stored)
        products = _products(self.kept, other.kept, stored)
        if self.signed is not None and other.signed is not None:
            products += _products(self.signed, other.signed, stored).abs_()
        return products

    def strongest(self, k: int) -> Int[Tensor, " _"]:
        """The k columns of `kept` with the largest norms, largest first: they tell units apart best."""
        return self.kept.square().sum(dim=0).argsort(descending=True)[:k]

    def at(self, rows: Int[Tensor, " m"] | slice) -> "Units":
        """The units of these numbers."""
        return replace(self, kept=self.kept[rows], signed=None if self.signed is None else self.signed[rows])

    def squared_distance(self, other: "Units", signs: Int8[Tensor, " F"]) -> float:
        """`sum_i |x_i - s_i y_i|^2`, term by term, since near ones would cancel."""
        total = (self.kept - other.kept).square_().sum(dim=1)
        if self.signed is not None and other.signed is not None:
            signed = other.signed * signs[:, None].to(self.signed)
            total += (self.signed - signed).square_().sum(dim=1)
        return total.double().sum().item()

    def dot(self, other: "Units") -> tuple[Float[Tensor, " F"], Float[Tensor, " F"]]:
        """`<x_i, y_i>` of the part that a sign keeps, and of the part that it changes."""
        kept = (self.kept * other.kept).sum(dim=1)
        if self.signed is None or other.signed is None:
            return kept, torch.zeros_like(kept)
        return kept, (self.signed * other.signed).sum(dim=1)


@dataclass(frozen=True)
class Partners:
    """Every unit of one expert with its partner of another.

    Args:
        columns: p, `[F]`; unit i has partner p(i).
        similarities: `S_ip(i)`.
        signs: those that reach it.
        squared_distance: `sum_i |x_i - s_i y_p(i)|^2`.
    """

    columns: Int[Tensor, " F"]
    similarities: Float[Tensor, " F"]
    signs: Int8[Tensor, " F"]
    squared_distance: float

    @classmethod
    def of(cls, reference: Units, other: Units, columns: Int[Tensor, " F"]) -> "Partners":
        """The partners `columns`."""
        similarities, signs, distance = [], [], 0.0
        size = max(1, _BLOCK_BYTES // max(1, reference.kept[:1].nbytes))
        for start in range(0, len(columns), size):
            rows = slice(start, start + size)
            own, partners = reference.at(rows), other.at(columns[rows])
            kept, signed = own.dot(partners)
            similarities.append(kept + signed.abs())
            signs.append(torch.where(signed < 0, -1, 1).to(torch.int8))
            distance += own.squared_distance(partners, signs[-1])
        return cls(columns, torch.cat(similarities), torch.cat(signs), distance)


def _products(x: Float[Tensor, "m d"], y: Float[Tensor, "n d"], stored: torch.dtype) -> Float[Tensor, "m n"]:
    """`x y^T`; a GPU takes what 16 bits hold as that, and sums in float32: as exact, on its matrix units."""
    if x.is_cuda and x.dtype == torch.float32 and stored.itemsize == 2:
        return torch.mm(x.to(stored), y.to(stored).T, out_dtype=torch.float32)
    return x @ y.T


def _joined(terms: list[Float[Tensor, "F _"]], dtype: torch.dtype) -> Float[Tensor, "F d"]:
    """`torch.cat(terms, dim=1).to(dtype)`, at a fifth of its cost where a term is stored across (down_proj)."""
    widths = [term.shape[1] for term in terms]
    rows = terms[0].new_empty(len(terms[0]), sum(widths), dtype=dtype)
    for part, term in zip(rows.split(widths, dim=1), terms, strict=True):
        part.copy_(term)
    return rows
