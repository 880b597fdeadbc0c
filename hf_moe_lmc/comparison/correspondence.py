"""Which layer of A stands at the place of each layer of B, by name; by content where B has fewer or more of them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.alignment import OpenedModel

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_ENTRIES = 2048  # of every tensor of a layer
_ALIKE = 0.1
_EXPERTS = re.compile(r"(^|\.)experts?\.")


@dataclass(frozen=True)
class Correspondence:
    """Names of B -> names of A.

    Args:
        layers: name of every stack of layers in B, such as `model.layers`, that is deeper or less deep in A ->
            (number in B -> number in A, or None).
        depths: name of every such stack -> the numbers of its layers in A.
    """

    layers: Mapping[str, Mapping[int, int | None]]
    depths: Mapping[str, frozenset[int]]

    @classmethod
    def of(cls, a: OpenedModel, b: OpenedModel) -> "Correspondence":
        """Stacks of one depth correspond number by number; of others, a few entries of every tensor are compared."""
        own, others = _stacks(a.sizes), _stacks(b.sizes)
        stacks = [stack for stack in own if stack in others and len(own[stack]) != len(others[stack])]
        return cls(
            {stack: _by_content(a, own[stack], b, others[stack], stack) for stack in stacks},
            {stack: frozenset(own[stack]) for stack in stacks},
        )

    def name_in_a(self, name: str) -> str | None:
        """The name in A of what B calls `name`; None where A has no such layer."""
        for stack, numbers in self.layers.items():
            rest = name.removeprefix(f"{stack}.")
            number = _NUMBER.match(rest)
            if rest != name and number:
                source = numbers.get(int(number[0]))
                return None if source is None else f"{stack}.{source}{rest[number.end() :]}"
        return name

    def missing(self, stack: str) -> list[int]:
        """Layers of A that B lacks."""
        return sorted(self.depths[stack] - set(self.layers[stack].values()))


def _stacks(names: Iterable[str]) -> dict[str, dict[int, list[str]]]:
    """Name of every outermost stack -> number of the layer -> names of its tensors, from there on."""
    stacks: dict[str, dict[int, list[str]]] = {}
    for name in names:
        if number := _NUMBER.search(name):
            layer = stacks.setdefault(name[: number.start()].rstrip("."), {}).setdefault(int(number[0]), [])
            layer.append(name[number.end() :])
    return stacks


def _by_content(
    a: OpenedModel, own: Mapping[int, list[str]], b: OpenedModel, others: Mapping[int, list[str]], stack: str
) -> dict[int, int | None]:
    """The increasing map of layers with the greatest sum of agreements; number by number where none agrees."""
    rows = [_signature(a, stack, number, own[number]) for number in sorted(own)]
    columns = [_signature(b, stack, number, others[number]) for number in sorted(others)]
    table = [[_agreement(x, y) for y in columns] for x in rows]
    if max(max(row) for row in table) < _ALIKE:
        return {number: number if number in own else None for number in others}
    chosen = _increasing(table)
    numbers = sorted(own)
    return {number: None if (i := chosen[place]) is None else numbers[i] for place, number in enumerate(sorted(others))}


def _increasing(table: list[list[float]]) -> list[int | None]:
    """The rows of the columns, increasing, with the greatest sum of entries; a column may go without."""
    height, width = len(table), len(table[0])
    best = [[0.0] * (width + 1) for _ in range(height + 1)]
    for i in range(height):
        for j in range(width):
            best[i + 1][j + 1] = max(best[i][j + 1], best[i + 1][j], best[i][j] + table[i][j])
    chosen: list[int | None] = [None] * width
    i, j = height, width
    while i and j:
        if best[i][j] == best[i - 1][j]:
            i -= 1
        elif best[i][j] == best[i][j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            chosen[j] = i
    return chosen


def _signature(model: OpenedModel, stack: str, number: int, suffixes: Iterable[str]) -> dict[str, Float[Tensor, " n"]]:
    """Of every tensor but those of experts, whose order is free, some entries, of norm 1."""
    names = {suffix: f"{stack}.{number}{suffix}" for suffix in suffixes if not _EXPERTS.search(suffix)}
    signature = {}
    for suffix, name in names.items():
        entries = model.read([name])[name].flatten()[:_ENTRIES]
        if entries.is_floating_point() and len(entries) > 1:
            centred = entries.float() - entries.float().mean()
            signature[suffix] = torch.nn.functional.normalize(centred, dim=0)
    return signature


def _agreement(x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> float:
    """The mean cosine of what both have."""
    cosines = [float(x[name] @ y[name]) for name in x.keys() & y.keys() if x[name].shape == y[name].shape]
    return sum(cosines) / len(cosines) if cosines else 0.0
