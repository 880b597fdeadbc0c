"""Which layer of A stands at the place of each layer of B: by name; by content where B has others or another order."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.alignment import OpenedModel

from .wording import listed, numbered

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_ENTRIES = 2048  # of every tensor of a layer
_ALIKE = 0.1
_SAME = 0.9  # agreement from which on a layer is another one, wherever it stands
_EXPERTS = re.compile(r"(^|\.)experts?\.")


@dataclass(frozen=True)
class Correspondence:
    """Names of B -> names of A.

    Args:
        layers: name of every stack of layers in B, such as `model.layers`, that is deeper or less deep in A, or in
            another order -> (number in B -> number in A, or None).
        depths: name of every such stack -> the numbers of its layers in A.
    """

    layers: Mapping[str, Mapping[int, int | None]]
    depths: Mapping[str, frozenset[int]]

    @classmethod
    def of(cls, a: OpenedModel, b: OpenedModel) -> "Correspondence":
        """Of stacks of one depth, vectors such as norms tell the order; of others, a few entries of every tensor."""
        own, others = _stacks(a.sizes), _stacks(b.sizes)
        layers = {
            stack: (_in_order if len(own[stack]) == len(others[stack]) else _by_content)(
                a, own[stack], b, others[stack], stack
            )
            for stack in own
            if stack in others
        }
        layers = {stack: numbers for stack, numbers in layers.items() if any(i != j for j, i in numbers.items())}
        return cls(layers, {stack: frozenset(own[stack]) for stack in layers})

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

    def told(self) -> Iterator[str]:
        """What is not number by number, in words."""
        for stack, numbers in self.layers.items():
            if missing := self.missing(stack):
                yield f"B is A without {numbered('layer', missing)} of {stack}, renumbered"
            if new := [number for number, source in numbers.items() if source is None]:
                yield f"{numbered('layer', new)} of {stack} in B {'is' if len(new) == 1 else 'are'} nowhere in A"
            known = [(number, source) for number, source in numbers.items() if source is not None]
            repeats = [(j, i) for n, (j, i) in enumerate(known) if i in (source for _, source in known[:n])]
            sources = [i for _, i in known]
            if repeats:
                of_b, of_a = (numbered("layer", list(part)) for part in zip(*repeats, strict=True))
                yield f"B is deeper than A: {of_b} of {stack} in B repeat{'s' * (len(repeats) == 1)} {of_a} of A"
            elif sources != sorted(sources):
                moved = [f"layer {j} is {i} of A" for j, i in known if i != j]
                yield f"layers of {stack} stand in another order in B: {listed(moved)}; put them back"


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
    chosen, numbers = _increasing(table), sorted(own)
    for place, agreements in enumerate(zip(*table, strict=True)):  # layers that B repeats
        if chosen[place] is None and max(agreements) > _SAME:
            chosen[place] = agreements.index(max(agreements))
    return {number: None if (i := chosen[place]) is None else numbers[i] for place, number in enumerate(sorted(others))}


def _in_order(
    a: OpenedModel, own: Mapping[int, list[str]], b: OpenedModel, others: Mapping[int, list[str]], stack: str
) -> dict[int, int | None]:
    """Number by number, unless each layer's norms are another one's, in one order of all."""
    rows, columns = (
        {n: _signature(model, stack, n, [x for x in layers[n] if "norm" in x]) for n in sorted(layers)}
        for model, layers in ((a, own), (b, others))
    )
    nearest = dict[int, int | None]()
    for number, signature in columns.items():
        agreements = {i: _agreement(row, signature) for i, row in rows.items()}
        best = max(agreements, key=lambda i: (agreements[i], i == number))
        nearest[number] = best if agreements[best] > _SAME else None
    return nearest if set(nearest.values()) == set(own) else {number: number for number in others}


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
