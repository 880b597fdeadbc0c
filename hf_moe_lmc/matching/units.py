"""The units of one expert as rows, as they are compared when units are matched."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank, UnitScales

_BLOCK_BYTES = 2**19  # of rows that are worked on together: they stay in the cache from one operation to the next


Scaled = tuple[Tensor, Tensor | None]  # the rows of units, and their scales


class Block(NamedTuple):
    """Columns of a matrix that were stored in another dtype, and scaled row by row."""

    width: int
    scale: Float[Tensor, " F"] | None
    stored: torch.dtype


@dataclass(frozen=True)
class Units:
    """All weights of each unit of one expert in the gauge, in two parts: what its sign keeps and what it changes.

    Args:
        kept: `[F, d]`, the same under either sign.
        signed: `[F, s]`, changes sign with the unit; None where no sign is free.
        kept_blocks, signed_blocks: how their columns were stored, in order.
    """

    kept: Float[Tensor, "F d"]
    signed: Float[Tensor, "F s"] | None
    kept_blocks: tuple[Block, ...] = ()
    signed_blocks: tuple[Block, ...] = ()

    @classmethod
    def of(cls, experts: ExpertBank, scales: UnitScales, expert: int, signs: bool, dtype: torch.dtype) -> "Units":
        """The units of one expert of the bank under `scales`; only this expert is brought to `dtype`."""
        up, down = scales.up[expert].to(dtype), scales.down[expert].to(dtype)
        kept: list[Scaled] = [(term[expert], None) for term in experts.unsigned_unit_terms()]
        signed: list[Scaled] = [
            (term[expert], scale) for term, scale in zip(experts.signed_unit_terms(), (up, down, up), strict=False)
        ]
        if signs:
            return cls(_joined(kept, up), _joined(signed, up), _blocks(kept), _blocks(signed))
        return cls(_joined([*kept, *signed], up), None, _blocks([*kept, *signed]))

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
        products = _products(self.kept, other.kept, self.kept_blocks, other.kept_blocks)
        if self.signed is not None and other.signed is not None:
            products += _products(self.signed, other.signed, self.signed_blocks, other.signed_blocks).abs_()
        return products

    def strongest(self, k: int) -> Int[Tensor, " _"]:
        """The k columns of `kept` with the largest norms, largest first: they tell units apart best."""
        return self.kept.square().sum(dim=0).argsort(descending=True)[:k]


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
        pairs = [(reference.kept, other.kept)]
        if reference.signed is not None and other.signed is not None:
            pairs.append((reference.signed, other.signed))
        size = max(1, min(len(columns), _BLOCK_BYTES // max(1, sum(own[:1].nbytes for own, _ in pairs))))
        places = [own.new_empty(size, own.shape[1]) for own, _ in pairs]
        similarities, signs, distance = [], [], 0.0
        for start in range(0, len(columns), size):
            chosen = columns[start : start + size]
            rows = [own[start : start + size] for own, _ in pairs]
            partners = [
                torch.index_select(its, 0, chosen, out=place[: len(chosen)])
                for (_, its), place in zip(pairs, places, strict=True)
            ]
            kept, *signed = ((x * y).sum(dim=1) for x, y in zip(rows, partners, strict=True))
            signs.append(torch.ones_like(kept, dtype=torch.int8))
            if signed:
                signs[-1][signed[0] < 0] = -1
                partners[1].mul_(signs[-1][:, None].to(kept))
                kept += signed[0].abs()
            similarities.append(kept)
            # Term by term, since near ones would cancel.
            squares = [y.sub_(x).square_().sum(dim=1) for x, y in zip(rows, partners, strict=True)]
            distance += torch.stack(squares).sum(dim=0).double().sum().item()
        return cls(columns, torch.cat(similarities), torch.cat(signs), distance)


def _products(
    x: Float[Tensor, "m d"], y: Float[Tensor, "n d"], x_blocks: tuple[Block, ...], y_blocks: tuple[Block, ...]
) -> Float[Tensor, "m n"]:
    """`x y^T`; a GPU multiplies what 16 bits hold as that, and sums in float32: as exact, on its matrix units."""
    blocks = list(zip(x_blocks, y_blocks, strict=False))
    halves = [a.stored == b.stored and a.stored.itemsize == 2 for a, b in blocks]
    if not (x.is_cuda and x.dtype == torch.float32 and blocks and all(halves)):
        return x @ y.T
    products = x.new_zeros(len(x), len(y))
    widths = [block.width for block, _ in blocks]
    for a, b, (own, other) in zip(x.split(widths, dim=1), y.split(widths, dim=1), blocks, strict=True):
        product = torch.mm(_as_stored(a, own), _as_stored(b, other).T, out_dtype=torch.float32)
        if own.scale is not None and other.scale is not None:
            product *= own.scale.unsqueeze(1) * other.scale
        products += product
    return products


def _as_stored(rows: Float[Tensor, "F d"], block: Block) -> Float[Tensor, "F d"]:
    """The rows before they were scaled: exactly, since float32 has bits to spare."""
    if block.scale is None:
        return rows.to(block.stored)
    return (rows / block.scale.masked_fill(block.scale == 0, 1.0).unsqueeze(1)).to(block.stored)


def _blocks(terms: list[Scaled]) -> tuple[Block, ...]:
    return tuple(Block(term.shape[1], scale, term.dtype) for term, scale in terms)


def _joined(terms: list[Scaled], like: Float[Tensor, " F"]) -> Float[Tensor, "F d"]:
    """`torch.cat` of all terms under their scales, in the dtype of `like`.

    At a fifth of its cost where a term is stored across (down_proj).
    """
    widths = [term.shape[1] for term, _ in terms]
    rows = like.new_empty(len(like), sum(widths))
    for part, (term, scale) in zip(rows.split(widths, dim=1) if widths else (), terms, strict=True):
        part.copy_(term)
        if scale is not None:
            part.mul_(scale[:, None])
    return rows
