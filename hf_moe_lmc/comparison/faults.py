"""How experts are stored wrongly: functions from an expert to the expert that a wrong conversion makes of it.

Each comes with its inverse, so that a fault is found whether a rewrite came before it or after.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from hf_moe_lmc.moe import ExpertBank

FaultKind = Literal["gate_up_swapped", "interleaving", "transposed"]
Rewrite = Callable[[ExpertBank], ExpertBank]


@dataclass(frozen=True)
class Fault:
    """A way to store an expert wrongly.

    Args:
        kind: what is wrong.
        rewrite: an expert -> that expert stored so.
    """

    kind: FaultKind
    rewrite: Rewrite


def swapped(experts: ExpertBank) -> ExpertBank:
    """Gate and up exchanged."""
    return _on_gate_up(experts, lambda gate, up: (up, gate))


def interleaved(experts: ExpertBank) -> ExpertBank:
    """Rows gate, up, gate, up, ... cut in two halves, which pass for gate and up."""
    return _on_gate_up(experts, lambda gate, up: torch.stack([gate, up], dim=2).flatten(1, 2).chunk(2, dim=1))


def joined(experts: ExpertBank) -> ExpertBank:
    """Rows of gate, then those of up, of which the even ones pass for gate and the odd ones for up."""

    def split(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.cat([gate, up], dim=1)
        return rows[:, ::2], rows[:, 1::2]

    return _on_gate_up(experts, split)


def row_faults(experts: ExpertBank) -> list[Fault]:
    """Faults that keep the rows of gate and up and only mistake which is which; the inverse of each is among them."""
    if experts.gate_proj is None:
        return []
    both: list[Rewrite] = [interleaved, joined, lambda x: interleaved(swapped(x)), lambda x: swapped(joined(x))]
    return [Fault("gate_up_swapped", swapped), *(Fault("interleaving", rewrite) for rewrite in both)]


def transpositions(experts: ExpertBank, is_interleaved: bool) -> Iterator[Fault]:
    """Faults that take rows for columns: of gate and up, one by one or as they are stored in one; of down; of all.

    A matrix that is not square keeps its shape: its entries are those of its transpose, in the order of memory.

    Args:
        experts: whose shapes decide.
        is_interleaved: how rows of gate and up lie if they are stored in one.
    """
    for turned in (_turned_rows, _turned_columns):

        def turn(tensor: Tensor, turned: Callable[[Tensor], Tensor] = turned) -> Tensor:
            return turned(tensor)

        def down(x: ExpertBank, turn: Callable[[Tensor], Tensor] = turn) -> ExpertBank:
            return replace(x, down_proj=turn(x.down_proj))

        def each(x: ExpertBank, turn: Callable[[Tensor], Tensor] = turn) -> ExpertBank:
            return replace(x, up_proj=turn(x.up_proj), gate_proj=None if x.gate_proj is None else turn(x.gate_proj))

        def in_one(x: ExpertBank, turn: Callable[[Tensor], Tensor] = turn) -> ExpertBank:
            if x.gate_proj is None:
                return each(x, turn)
            if is_interleaved:
                rows = turn(torch.stack([x.gate_proj, x.up_proj], dim=2).flatten(1, 2))
                return replace(x, gate_proj=rows[:, ::2], up_proj=rows[:, 1::2])
            gate, up = turn(torch.cat([x.gate_proj, x.up_proj], dim=1)).chunk(2, dim=1)
            return replace(x, gate_proj=gate, up_proj=up)

        yield Fault("transposed", down)
        for inward in (each, in_one) if experts.gate_proj is not None else (each,):
            yield Fault("transposed", inward)
            yield Fault("transposed", lambda x, inward=inward, down=down: down(inward(x)))


def _turned_rows(tensor: Tensor) -> Tensor:
    """`[E, m, n]` whose entries are those of the transposed matrices in memory order."""
    return tensor.mT.reshape(tensor.shape)


def _turned_columns(tensor: Tensor) -> Tensor:
    """The inverse of `_turned_rows`; the same for square matrices."""
    e, m, n = tensor.shape
    return tensor.reshape(e, n, m).mT


def _on_gate_up(experts: ExpertBank, function: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> ExpertBank:
    if experts.gate_proj is None:
        raise ValueError("experts without gate_proj have no such halves")
    gate, up = function(experts.gate_proj, experts.up_proj)
    changed = replace(experts, gate_proj=gate, up_proj=up)
    if experts.gate_bias is None or experts.up_bias is None:
        return changed
    gate_bias, up_bias = function(experts.gate_bias, experts.up_bias)
    return replace(changed, gate_bias=gate_bias, up_bias=up_bias)
