"""Experts that are stored wrongly: the expert of A that a slot of B holds, and both as if nothing had gone wrong.

Three things go wrong in conversions, alone or together: matrices are stored as their transposes, rows of gate_proj
stand where those of up_proj belong, and a scale is left out. Transposes are found by sketches, which see no order of
rows; rows are then matched one by one, wherever they stand; `fit` finds the scales. Where a matrix was transposed
between two orders of its units, no row is left: its values alone, in whatever order, tell whose they are.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hf_moe_lmc.matching import CERTAIN
from hf_moe_lmc.moe import ExpertBank

from .candidates import sketch
from .fit import one_expert, wide

FaultKind = Literal["gate_up_swapped", "interleaving", "transposed"]
_MATRICES, _BIASES = ("gate_proj", "up_proj"), ("gate_bias", "up_bias")
PROJECTIONS = (*_MATRICES, "down_proj")

_AGREE = 0.8  # cosine of sketches from which on rows are matched
_MOST = 0.9  # of the rows
_DISCOVERIES = 1e-3  # the share of experts recognised by their values that chance may give
_ALIKE = 1 / 16  # probability that two values lie in one bin, above which they tell nothing
_BINS, _RANGE = 1024, 5.0  # of absolute values, in root mean squares
_ENTRIES = 2**22  # of a block of cosines

Turn = Callable[[Tensor], Tensor]
Rows = tuple[Tensor, ...]
"""gate_proj and up_proj of one expert, `[F, H]`, or up_proj alone."""


@dataclass(frozen=True)
class Restored:
    """Two experts whose units stand side by side once a fault is undone.

    Args:
        own, other: banks of one expert, of A and of B; row by row the same, but for signs undone and a change.
        kind: what was wrong.
        in_place: whether the units stand at their places.
        signs: whether some rows have another sign.
    """

    own: ExpertBank
    other: ExpertBank
    kind: FaultKind
    in_place: bool
    signs: bool


def find_faults(
    a: ExpertBank, b: ExpertBank, known: Sequence[int], slots: Sequence[int], signs: bool
) -> Iterator[tuple[int, int, Restored | None]]:
    """Slots of B that hold an expert of A stored wrongly: `(slot, expert, both)`.

    down_proj tells the expert, as it is or transposed, on either side: a fault on the side of B came after units were
    put in another order, one on the side of A before. None in place of both: a matrix was transposed in between.

    Args:
        a, b: experts of the same shapes.
        known, slots: those of A and of B that are looked at.
        signs: whether units have free signs.
    """
    own, others = (_Sketches.of([one_expert(bank, e) for e in numbers]) for bank, numbers in ((a, known), (b, slots)))
    chances, sources = own.chances_of_values(others).min(dim=0)
    left = dict[int, int]()  # the row of every slot of which no row was found
    views = list(_VIEWS[a.gate_proj is not None])
    for row, j in enumerate(slots):
        turned = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]  # of A, of B
        cosines = torch.stack([own.down[x] @ others.down[y, row] for x, y in turned])
        best, restored = int(cosines.argmax()), None
        if float(cosines.flatten()[best]) > _AGREE:
            i, (of_a, of_b) = known[best % len(known)], turned[best // len(known)]
            expert, other = one_expert(a, i), one_expert(b, j)
            if view := _agreeing_view(expert, other, views):
                views.sort(key=lambda x: x is not view)  # the same went wrong in most experts
                expert, other = _turned_down(expert, _TURNS[of_a]), _turned_down(other, _TURNS[of_b])
                expert, other = view.apply(expert, of_b=False), view.apply(other, of_b=True)
                restored = _match_rows(expert, other, signs, transposed=view.turn is not None or of_a + of_b > 0)
                if restored is not None:
                    yield j, i, restored
        if restored is None:
            left[j] = row
    # Benjamini and Hochberg (1995): the k smallest of n, where the k-th is at most k / n of the rate.
    ranked = sorted(left, key=lambda j: float(chances[left[j]]))
    few = [k for k, j in enumerate(ranked, start=1) if float(chances[left[j]]) <= _DISCOVERIES * k / len(ranked)]
    for j in ranked[: max(few, default=0)]:
        yield j, known[int(sources[left[j]])], None


@dataclass(frozen=True)
class _Sketches:
    """Of n experts: sketches of their rows, and the distributions of their values.

    Args:
        inward: of gate_proj and up_proj together.
        down: of the units' columns of down_proj, as it is stored and turned either way.
        values: how many absolute values of gate_proj and up_proj, and of down_proj, lie in each bin.
        agree: cosine of sketches from which on they are of the same rows.
    """

    inward: Float[Tensor, "n k"]
    down: Float[Tensor, "view n k"]
    values: Float[Tensor, "2 n bins"]
    agree: float

    @classmethod
    def of(cls, experts: Sequence[ExpertBank]) -> "_Sketches":
        """Those of banks of one."""
        inward = [_parts(expert, _MATRICES) for expert in experts]
        down, width = [expert.down_proj[0] for expert in experts], experts[0].up_proj.shape[2]
        # Fisher's z of a cosine that chance gives, by the numbers in `M^T M` of a trace: it matters below a width of 8.
        numbers = width * (width + 1) / 2 - 1
        return cls(
            torch.stack([sketch(*rows) for rows in inward]),
            torch.stack([torch.stack([sketch(turn(x).T) for x in down]) for turn in _TURNS]),
            torch.stack([torch.stack([_values(*rows) for rows in side]) for side in (inward, [(x,) for x in down])]),
            max(_AGREE, math.tanh(CERTAIN / math.sqrt(numbers - 3))) if numbers > 3 else 1.0,
        )

    def chances_of_values(self, other: "_Sketches") -> Float[Tensor, "n m"]:
        """The probability that matrices whose rows do not agree have values so near by chance, times number of tests.

        Near by the two-sample Cramér-von Mises statistic w, free of scale and added up over n such matrices, of which
        `P(w < t) -> 4 / n (t / 2 pi)^(1/2) (n / t)^(n / 2) exp(-n^2 / 8 t)` for small t (the saddle point of its
        characteristic function), and three times as much for each that was brought to one scale: the ratio at 0.015 in
        simulations of Gaussian values. Tests: the experts of as many such matrices.
        """
        distances = []
        for a, b in zip(self.values, other.values, strict=True):
            count, density = a[0].sum(), a.mean(dim=0) / a[0].sum()
            x, y = (side.cumsum(dim=1) / count * density.sqrt() for side in (a, b))
            squares = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
            distances.append(count / 2 * squares if density.square().sum() < _ALIKE else squares + torch.inf)
        differ = torch.stack([self.inward @ other.inward.T, self.down[0] @ other.down[0].T]) < self.agree
        n, w = differ.sum(dim=0), torch.where(differ, torch.stack(distances), 0.0).sum(dim=0).clamp(1e-3, 1.0)
        chances = 3.0**n * 4 / n * (w / (2 * math.pi)).sqrt() * (n / w) ** (n / 2) * torch.exp(-(n**2) / (8 * w))
        return torch.where(n > 0, chances * torch.where(n == 1, (n == 1).sum(dim=0), (n == 2).sum(dim=0)), 1.0)


@dataclass(frozen=True)
class _View:
    """gate_proj and up_proj of one side as they may have been meant: some of them, alone or in one, turned.

    Args:
        of_b: which side is seen so, the other one as it is stored.
        scope: rows and a turn -> rows turned.
        turn: None of both sides as they are stored.
    """

    of_b: bool
    scope: Callable[[Rows, Turn], Rows]
    turn: Turn | None

    def apply(self, expert: ExpertBank, of_b: bool) -> ExpertBank:
        """The expert of one side, its biases where their rows were."""
        if self.turn is None or of_b != self.of_b:
            return expert
        rows, biases = (_parts(expert, names) for names in (_MATRICES, _BIASES))
        turned = _named(_MATRICES, self.scope(rows, self.turn))
        return replace(expert, **turned, **_named(_BIASES, self.scope(biases, lambda bias: bias) if biases else ()))


def _parts(expert: ExpertBank, names: Sequence[str]) -> Rows:
    return tuple(expert.tensors()[name][0] for name in names if name in expert.tensors())


def _named(names: Sequence[str], parts: Rows) -> dict[str, Tensor]:
    """Fields of an expert that `_parts` gave; only the last one without gate_proj."""
    return {name: part[None] for name, part in zip(names[len(names) - len(parts) :], parts, strict=True)}


def _turned_rows(matrix: Tensor) -> Tensor:
    """`[m, n]` whose entries are those of the transpose in memory order."""
    return matrix.T.reshape(matrix.shape)


def _turned_columns(matrix: Tensor) -> Tensor:
    """The inverse of `_turned_rows`; the same for square matrices."""
    return matrix.reshape(matrix.shape[::-1]).T


_TURNS: tuple[Turn, ...] = (lambda matrix: matrix, _turned_rows, _turned_columns)
_SCOPES: tuple[Callable[[Rows, Turn], Rows], ...] = (
    lambda rows, turn: tuple(map(turn, rows)),
    lambda rows, turn: turn(torch.cat(rows)).chunk(2),
    lambda rows, turn: turn(torch.stack(rows, dim=1).flatten(0, 1)).chunk(2),  # rows in turn
    lambda rows, turn: (turn(rows[0]), rows[1]),
    lambda rows, turn: (rows[0], turn(rows[1])),
)
_VIEWS = {
    gated: (
        _View(True, _SCOPES[0], None),
        *(
            _View(of_b, scope, turn)
            for scope in (_SCOPES if gated else _SCOPES[:1])
            for turn in _TURNS[1:]
            for of_b in (True, False)
        ),
    )
    for gated in (False, True)
}


def _agreeing_view(own: ExpertBank, other: ExpertBank, views: Sequence[_View]) -> _View | None:
    """The first view under which two experts' gate_proj and up_proj agree, taken together."""
    plain = [sketch(*_parts(expert, _MATRICES)) for expert in (own, other)]
    for view in views:
        sketches = list(plain)
        if view.turn is not None:
            seen = view.apply((own, other)[view.of_b], view.of_b)
            sketches[view.of_b] = sketch(*_parts(seen, _MATRICES))
        if float(sketches[0] @ sketches[1]) > _AGREE:
            return view
    return None


def _values(*matrices: Tensor) -> Float[Tensor, " bins"]:
    """How many absolute values lie in each bin, in units of their root mean square."""
    values = torch.cat([matrix.flatten() for matrix in matrices]).float()
    scale = values.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.histc(values.abs_().div_(scale), _BINS, 0, _RANGE)


def _turned_down(expert: ExpertBank, turn: Turn) -> ExpertBank:
    return replace(expert, down_proj=turn(expert.down_proj[0])[None])


def _match_rows(own: ExpertBank, other: ExpertBank, signs: bool, transposed: bool) -> Restored | None:
    """The expert of A with every row of gate_proj and up_proj, and every column of down_proj, where B has it.

    None where rows belong to no unit as a whole, or where nothing is wrong.
    """
    rows = [torch.cat(_parts(expert, _MATRICES)) for expert in (own, other)]
    index, flipped = _nearest(rows[0], rows[1], signs)
    columns, flipped_columns = _nearest(own.down_proj[0].T, other.down_proj[0].T, signs)
    count, gated = own.num_units, own.gate_proj is not None
    is_whole = bool(((index % count).view(-1, count) == columns).all(dim=0).float().mean() > _MOST)
    ups = (index.view(-1, count) // count).float().mean(dim=1).tolist()  # the shares that come from up_proj
    kind: FaultKind | None = "transposed" if transposed else None
    if gated and not all(share < 1 - _MOST or share > _MOST for share in ups):
        kind, is_whole = kind or "interleaving", True
    elif gated and ups[0] > _MOST and ups[1] < 1 - _MOST:
        kind = kind or "gate_up_swapped"
    if kind is None or not is_whole:
        return None

    restored = {"down_proj": torch.where(flipped_columns, -own.down_proj[:, :, columns], own.down_proj[:, :, columns])}
    for names in (_MATRICES, _BIASES):
        parts = _parts(own, names)
        if parts:
            moved = torch.cat(parts)[index]
            moved = torch.where(flipped.view(-1, *[1] * (moved.ndim - 1)), -moved, moved)
            restored |= _named(names, moved.chunk(len(parts)))
    in_place = bool((columns == torch.arange(count)).all())
    return Restored(replace(own, **restored), other, kind, in_place, bool(flipped.any() or flipped_columns.any()))


def _nearest(
    x: Float[Tensor, "m d"], y: Float[Tensor, "n d"], signs: bool
) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """The row of x with the greatest cosine to each row of y, either sign if they are free, and whether it is -1."""
    x, y = (torch.nn.functional.normalize(rows.to(wide(rows)), dim=1) for rows in (x, y))
    index, cosines = [], []
    for block in y.split(max(1, _ENTRIES // len(x))):
        table = block @ x.T
        index.append((table.abs() if signs else table).argmax(dim=1))
        cosines.append(table.gather(1, index[-1][:, None])[:, 0])
    return torch.cat(index), torch.cat(cosines) < 0 if signs else torch.zeros(len(y), dtype=torch.bool)
