"""How experts are stored wrongly: functions from an expert to the expert that a wrong conversion makes of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank

from .candidates import sketch
from .fit import one_expert

FaultKind = Literal["gate_up_swapped", "interleaving", "transposed"]
_EQUAL = 0.01  # difference of cosines of sketches that says nothing
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

Turn = Callable[[Tensor], Tensor]


def _joined(gate: Tensor, up: Tensor) -> Tensor:
    return torch.cat([gate, up], dim=1)


def _halves(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.chunk(2, dim=1)


def _interleaved(gate: Tensor, up: Tensor) -> Tensor:
    return torch.stack([gate, up], dim=2).flatten(1, 2)


def _alternate(rows: Tensor) -> tuple[Tensor, ...]:
    return rows[:, ::2], rows[:, 1::2]


def _turned_rows(tensor: Tensor) -> Tensor:
    """`[E, m, n]` whose entries are those of the transposed matrices in memory order."""
    return tensor.mT.reshape(tensor.shape)


def _turned_columns(tensor: Tensor) -> Tensor:
    """The inverse of `_turned_rows`; the same for square matrices."""
    e, m, n = tensor.shape
    return tensor.reshape(e, n, m).mT


_TURNS: tuple[Turn, ...] = (lambda tensor: tensor, _turned_rows, _turned_columns)
_IN_ONE = {"joined": (_joined, _halves), "interleaved": (_interleaved, _alternate)}
"""How gate and up are stored in one: the tensor that holds both, and how it comes apart."""


@dataclass(frozen=True)
class Fault:
    """A way to store an expert wrongly.

    Args:
        kind: what is wrong.
        rewrite: an expert -> that expert stored so, or the inverse.
        of_b: whether B's expert is rewritten, to become A's but for a symmetry, which finds faults that came after the
            symmetry; else A's, to become B's, which finds those that came before.
    """

    kind: FaultKind
    rewrite: Callable[[ExpertBank], ExpertBank]
    of_b: bool

    def apply(self, a: ExpertBank, b: ExpertBank) -> tuple[ExpertBank, ExpertBank]:
        """Both experts, one of them rewritten."""
        return (a, self.rewrite(b)) if self.of_b else (self.rewrite(a), b)


def swapped(experts: ExpertBank) -> ExpertBank:
    """Gate and up exchanged."""
    return _on_gate_up(experts, lambda gate, up: (up, gate))


def interleaved(experts: ExpertBank) -> ExpertBank:
    """Rows gate, up, gate, up, ... cut in two halves, which pass for gate and up."""
    return _on_gate_up(experts, lambda gate, up: _halves(_interleaved(gate, up)))


def joined(experts: ExpertBank) -> ExpertBank:
    """Rows of gate, then those of up, of which the even ones pass for gate and the odd ones for up."""
    return _on_gate_up(experts, lambda gate, up: _alternate(_joined(gate, up)))


def find_row_faults(a: ExpertBank, b: ExpertBank) -> list[tuple[float, Fault]]:
    """The mistakes of rows of gate_proj for those of up_proj under which two experts agree most, with the cosine.

    Two, where the agreement does not tell whether the fault or the signs of units came first.

    Args:
        a, b: banks of one gated expert.
    """
    both = (interleaved, joined, lambda x: interleaved(swapped(x)), lambda x: swapped(joined(x)))
    faults = [Fault("gate_up_swapped", swapped, of_b) for of_b in (False, True)]
    faults += [Fault("interleaving", rewrite, of_b) for rewrite in both for of_b in (False, True)]
    cosines = []
    for fault in faults:
        own, other = map(_row_sketches, fault.apply(a, b))
        cosines.append(sum(float(x @ y) for x, y in zip(own, other, strict=True)) / 2)
    return [(cosine, fault) for cosine, fault in zip(cosines, faults, strict=True) if cosine > max(cosines) - _EQUAL]


def _row_sketches(expert: ExpertBank) -> list[Float[Tensor, " n"]]:
    return [sketch(part[0]) for part in (expert.gate_proj, expert.up_proj) if part is not None]


def find_transpositions(
    a: ExpertBank, b: ExpertBank, known: Sequence[int], slots: Sequence[int]
) -> Iterator[tuple[int, int, float, Fault]]:
    """For every slot of B the expert of A and the transposition that agree most: `(slot, expert, cosine, fault)`.

    Rows are taken for columns in any of the projections, or in gate and up as they are stored in one, joined or
    interleaved. A matrix that is not square keeps its shape: its entries are those of its transpose, in the order of
    memory.

    Args:
        a, b: experts of the same shapes.
        known: the experts of A that are looked at.
        slots: those of B.
    """
    parts = [name for name in PROJECTIONS if getattr(a, name) is not None]
    in_one = tuple(_IN_ONE) if a.gate_proj is not None else ()
    sides = [[_sketches(one_expert(bank, e), parts) for e in numbers] for bank, numbers in ((a, known), (b, slots))]
    own, others = ({name: torch.stack([one[name] for one in side]) for name in side[0]} for side in sides)
    best: dict[int, tuple[int, int, float, Fault]] = {}

    def table(name: str, of_a: int, of_b: int) -> Float[Tensor, "b a"]:
        return others[name][:, of_b] @ own[name][:, of_a].T

    plain = torch.stack([table(part, 0, 0) for part in parts])
    for number, turn in enumerate(_TURNS[1:], start=1):
        for of_b in (False, True):
            views = (0, number) if of_b else (number, 0)
            turned = torch.stack([table(part, *views) for part in parts])
            nearer = torch.maximum(plain, turned)
            scores = {None: nearer.mean(dim=0)}
            scores |= {name: (2 * table(name, *views) + nearer[-1]) / 3 for name in in_one}
            for name, score in scores.items():
                for row, (j, cosines) in enumerate(zip(slots, score, strict=True)):
                    column = int(cosines.argmax())
                    if j not in best or float(cosines[column]) > best[j][2]:
                        wrong = (turned[:, row, column] > plain[:, row, column]).tolist()
                        rewrite = _transposition(turn, [part for part, x in zip(parts, wrong, strict=True) if x], name)
                        best[j] = (j, known[column], float(cosines[column]), Fault("transposed", rewrite, of_b))
    yield from best.values()


def _transposition(turn: Turn, parts: Sequence[str], in_one: str | None) -> Callable[[ExpertBank], ExpertBank]:
    """Turn the projections `parts`; gate and up as they are stored in one, if they are."""

    def rewrite(expert: ExpertBank) -> ExpertBank:
        wrong = [part for part in parts if in_one is None or part == "down_proj"]
        turned = replace(expert, **{part: turn(getattr(expert, part)) for part in wrong})
        if in_one is None or expert.gate_proj is None:
            return turned
        join, split = _IN_ONE[in_one]
        gate, up = split(turn(join(expert.gate_proj, expert.up_proj)))
        return replace(turned, gate_proj=gate, up_proj=up)

    return rewrite


def _sketches(expert: ExpertBank, parts: Sequence[str]) -> dict[str, Float[Tensor, "view n"]]:
    """Sketches of every projection over its hidden axis, as stored and turned both ways."""
    sketches = {}
    for part in parts:
        views = [turn(getattr(expert, part))[0] for turn in _TURNS]
        sketches[part] = torch.stack([sketch(view.mT if part == "down_proj" else view) for view in views])
    if expert.gate_proj is not None:
        for name, (join, split) in _IN_ONE.items():
            rows = join(expert.gate_proj, expert.up_proj)
            sketches[name] = torch.stack([sketch(*(part[0] for part in split(turn(rows)))) for turn in _TURNS])
    return sketches


def _on_gate_up(experts: ExpertBank, function: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> ExpertBank:
    if experts.gate_proj is None:
        raise ValueError("experts without gate_proj have no such halves")
    gate, up = function(experts.gate_proj, experts.up_proj)
    changed = replace(experts, gate_proj=gate, up_proj=up)
    if experts.gate_bias is None or experts.up_bias is None:
        return changed
    gate_bias, up_bias = function(experts.gate_bias, experts.up_bias)
    return replace(changed, gate_bias=gate_bias, up_bias=up_bias)
