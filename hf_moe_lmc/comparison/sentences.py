"""What the evidence means, in plain sentences: the cause, the figures that it rests on, and what to do."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

from .experts import ExpertComparison
from .layers import LayerComparison
from .tensors import TensorComparison
from .wording import MOST_NAMED, counted, in_words, joined, listed, numbered, percent_range

_NOISE = 1e-6
_CODED = 0.2  # relative distance that codes of 8 or 4 bits leave at most
_OFF = 0.01  # smallest difference of a factor from 1 that is named
_SIMPLE = ("identical", "rounded", "changed")

Place = tuple[LayerComparison, ExpertComparison]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Evidence:
    """All that sentences are made from.

    Args:
        layers, tensors: see `Comparison`.
        settings: differences of the configurations that change the function, in words.
        layers_told: layers that B lacks, repeats or has in another order, in words.
        told: names of tensors that need no mention: they belong to layers that are missing.
        same_function: see `Comparison`.
        quantised: which of the models is stored quantised, if it is one of them.
    """

    layers: tuple[LayerComparison, ...]
    tensors: tuple[TensorComparison, ...]
    settings: tuple[str, ...] = ()
    layers_told: tuple[str, ...] = ()
    told: frozenset[str] = frozenset()
    same_function: bool = False
    quantised: Literal["A", "B"] | None = None

    @cached_property
    def experts(self) -> list[Place]:
        """The routed experts, with their layers."""
        return [(layer, expert) for layer in self.layers for expert in layer.experts]

    @cached_property
    def shared(self) -> list[Place]:
        """The shared experts, with their layers."""
        return [(layer, expert) for layer in self.layers for expert in layer.shared_experts]

    @cached_property
    def changed_tensors(self) -> list[TensorComparison]:
        """Tensors that are not A's; those that only moved are."""
        return [t for t in self.tensors if t.kind != "identical" and not (t.kind == "moved" and t.change is None)]

    @cached_property
    def is_unrelated(self) -> bool:
        """Whether no expert is one of A's."""
        return bool(self.experts) and len(self.of("unrelated")) == len(self.experts)

    @cached_property
    def is_rounded(self) -> bool:
        """Whether something was rounded to another dtype, and no expert changed otherwise."""
        experts = [expert for layer in self.layers for expert in (*layer.experts, *layer.shared_experts)]
        some = any(e.is_rounding for e in experts) or any(tensor.kind == "rounded" for tensor in self.tensors)
        return some and all(e.is_rounding or not e.change for e in experts)

    @cached_property
    def is_upcycled(self) -> bool:
        """Whether every layer with several experts repeats the single one that A has there."""
        layers = [layer for layer in self.layers if len(layer.experts) > 1]
        return bool(layers) and all(layer.num_experts == 1 and set(layer.sources) == {0} for layer in layers)

    @cached_property
    def trained(self) -> list[ExpertComparison]:
        """The experts that changed where they stand or moved to, where most or only such did, and none was removed."""
        if any(len(layer.experts) != layer.num_experts for layer in self.layers):
            return []
        trained = [e for _, e in self.of("changed", "moved") if (e.change or 0.0) > _NOISE and not e.is_mixed]
        others = [e for _, e in self.experts if e.kind not in ("changed", "moved", "identical") or e.is_mixed]
        return trained if 2 * len(trained) > len(self.experts) or not others else []

    @cached_property
    def moves(self) -> str:
        """`experts in another order in 12 of 12 layers, units reordered in 11 of 12 layers`; empty of none."""
        parts = []
        for what, holds in (
            ("experts in another order", lambda layer: any(e.source not in (None, e.slot) for e in layer.experts)),
            ("shared experts in another order", lambda layer: any(e.kind == "moved" for e in layer.shared_experts)),
            (
                "units reordered",
                lambda layer: any(e.units == "reordered" for e in (*layer.experts, *layer.shared_experts)),
            ),
        ):
            if count := sum(map(holds, self.layers)):
                parts.append(f"{what} in {count} of {counted(len(self.layers), 'layer')}")
        if not parts and any(tensor.kind == "moved" for tensor in self.tensors):
            parts.append("dense units reordered")
        return ", ".join(parts)

    def of(self, *kinds: str) -> list[Place]:
        """The routed experts of some kinds."""
        return [place for place in self.experts if place[1].kind in kinds]

    def layers_by(self, key: Callable[[LayerComparison], Key | None]) -> dict[Key, list[LayerComparison]]:
        """Layers by what is true of them; those without left out."""
        groups: dict[Key, list[LayerComparison]] = defaultdict(list)
        for layer in self.layers:
            if value := key(layer):
                groups[value].append(layer)
        return groups

    def in_layers(self, layers: Iterable[LayerComparison]) -> str:
        """`in every layer`, or their numbers, or names where these have none."""
        names = list(dict.fromkeys(layer.name for layer in layers))
        if len(names) == len(self.layers) > 1:
            return "in every layer"
        stacks = {_stack(layer.name) for layer in self.layers}
        numbers = [number for name in names if (number := _stack(name)[1]) is not None]
        if len(numbers) < len(names) or len({stack for stack, number in stacks if number is not None}) > 1:
            return f"in {listed(names)}"
        return f"in {numbered('layer', numbers)}"

    def where(self, places: Iterable[Place]) -> str:
        """`experts 3 and 5 in layers 1 to 4`; the same slots of several layers together."""
        slots = defaultdict[str, list[int]](list)
        for layer, expert in places:
            slots[layer.name].append(expert.slot)
        groups = self.layers_by(lambda layer: tuple(slots[layer.name]))
        if len(groups) > MOST_NAMED:
            return f"{sum(map(len, slots.values()))} experts of {sum(map(bool, slots.values()))} layers"
        parts = []
        for own, layers in groups.items():
            whole = len(own) > 1 and all(len(own) == len(layer.experts) for layer in layers)
            parts.append(f"{f'all {len(own)} experts' if whole else numbered('expert', own)} {self.in_layers(layers)}")
        return joined(parts)


def describe(evidence: Evidence) -> tuple[str, ...]:
    """All that is recognised, most important first; of nothing that is recognised, one sentence that says so."""
    told = [sentence for rule in _RULES for sentence in rule(evidence)]
    return tuple(told) or tuple(_nothing(evidence))


def _not_finite(evidence: Evidence) -> Iterator[str]:
    shared = [(layer, expert) for layer, expert in evidence.shared if expert.kind == "not_finite"]
    names = [f"expert {expert.slot} of {layer.name}" for layer, expert in evidence.of("not_finite")]
    names += [f"shared expert {expert.slot} of {layer.name}" for layer, expert in shared]
    if names := [*names, *(t.name for t in evidence.tensors if t.kind == "not_finite")]:
        yield f"NaN or infinite values in {listed(names)}: the file is damaged; fetch or export it again"


def _whole(evidence: Evidence) -> Iterator[str]:
    """B as a whole, where one sentence says it all, or most."""
    experts, changed, moves = [e for _, e in evidence.experts], evidence.changed_tensors, evidence.moves
    shared = [expert for _, expert in evidence.shared]
    total, figures = len(experts), f"{len(experts)} experts, {len(evidence.tensors)} other tensors"
    changes, kinds = _changes(experts), {one.kind for one in (*experts, *evidence.tensors)}
    by = percent_range([t.change for t in changed if t.change is not None] or [0.0])
    all_kept = all(e.kind == "identical" for e in (*experts, *shared)) and bool(experts)
    if evidence.same_function and moves:
        yield f"B is A rewritten, the same function: {moves}, nothing else beyond rounding; {figures}"
    elif evidence.same_function and all(e.kind == "identical" for e in experts) and not changed:
        yield f"A and B are identical, bit for bit: {figures}"
    elif evidence.same_function:
        yield f"B is A in another dtype, with other unit signs, scales or router shifts, the same function: {figures}"
    elif kinds <= {"identical", "rounded", "moved"} and evidence.is_rounded:
        yield f"B is A rounded to another dtype{f', {moves}' if moves else ''}: {total} experts, {changes}"
    elif evidence.is_upcycled:
        layers = counted(len(evidence.layers), "layer")
        yield f"every expert of B comes from the dense MLP of A (upcycled; {changes}): {total} experts in {layers}"
    elif evidence.is_unrelated:
        score = f"; {scores}, and chance alone gives -3 to 3" if (scores := _scores(evidence.experts)) else ""
        if related := sum(t.is_related for t in evidence.tensors):
            yield (
                f"no expert of B is related to any of A ({total} experts{score}), while {related} other tensors "
                "are: were the experts left at their random start?"
            )
        elif not all(layer.note for layer in evidence.layers):
            yield f"the weights are unrelated: none of {total} experts is nearer to A than chance{score}"
    elif all_kept and any(t.kind in ("changed", "scaled") and not t.is_router for t in changed):
        yield (
            f"every expert is bit-identical to A's ({total}) while {len(changed)} other tensors changed: was an "
            "adapter on the experts lost? merge it again and compare"
        )
    elif evidence.quantised and _is_coded(evidence, [*experts, *shared]):
        text = "B is A quantised" if evidence.quantised == "B" else "A is B quantised"
        yield f"{text}: {total} experts in place, {changes}, norms and routers bit-identical"
    elif trained := evidence.trained:
        some = f"all {total} experts" if len(trained) == total else f"{len(trained)} of {total} experts"
        if not changed and all(e.kind == "identical" for e in shared):
            yield f"only experts differ: {some} {_changes(trained)}, all else is A's bit for bit"
        elif len(trained) == total and all(expert.is_far for expert in trained):
            yield (
                f"B's experts resemble A's more than chance and are far from them ({some} {_changes(trained)}): "
                "trained from other starts? align before you merge, and compare losses"
            )
        elif moves:
            yield f"B is a fine-tune of A in another order: {moves}; {some} {_changes(trained)}"
        else:
            yield f"B is a fine-tune of A: {some} in place, {_changes(trained)}"
    elif all_kept and _routers_alone_changed(evidence):
        yield f"only routers differ ({counted(len(changed), 'tensor')}, by {by}): all {total} experts are A's"


def _repeated(evidence: Evidence) -> Iterator[str]:
    """Copies: of expert-parallel ranks, or of one expert."""
    if evidence.is_upcycled:
        return
    repeated = evidence.layers_by(_period)
    for period, layers in repeated.items():
        times = len(layers[0].experts) // period
        often = "twice" if times == 2 else f"{in_words(times)} times"
        first = [source for source in layers[0].sources[:period] if source is not None]
        yield (
            f"{numbered('expert', first)} are repeated {often} {evidence.in_layers(layers)}: exported with "
            f"{in_words(times)} expert-parallel ranks? gather the experts of all ranks"
        )
    if rest := [place for place in evidence.of("copied") if not _period(place[0])]:
        pairs = Counter((expert.slot, expert.source) for _, expert in rest).most_common()
        shown = [f"slot {slot} is a copy of expert {source}" for (slot, source), _ in pairs]
        layers = evidence.in_layers(layer for layer, _ in rest)
        yield f"copies {layers}: {listed(shown)} ({counted(len(rest), 'slot')} in all)"


def _pruned(evidence: Evidence) -> Iterator[str]:
    """Experts of A that are nowhere in B, where B has fewer."""

    def is_pruned(layer: LayerComparison) -> bool:
        is_far = any(expert.is_far for expert in layer.experts)
        return len(layer.experts) < layer.num_experts and None not in layer.sources and not is_far

    for missing, layers in evidence.layers_by(lambda layer: layer.missing if is_pruned(layer) else ()).items():
        held = [source for source in layers[0].sources if source is not None]
        order = "renumbered" if held == sorted(held) else "in another order"
        if held == list(range(len(held))):
            order = "the others in place"
        changes = _changes(e for layer in layers for e in layer.experts)
        yield f"B is A without {numbered('expert', missing)}, {order}, {changes} ({evidence.in_layers(layers)})"


def _layers(evidence: Evidence) -> Iterator[str]:
    yield from evidence.layers_told


_ADVICE = "tokens reach the wrong experts; put the rows in the order of their experts"
_ROUTERS = {
    "rows moved": f"the router rows moved and the experts did not: {_ADVICE}",
    "both moved": f"router rows and experts moved, by different orders: {_ADVICE}",
    "experts moved": f"the experts moved and the router rows did not: {_ADVICE}",
    "new": "the router is unrelated to A's while experts are not: left at its random start, or trained anew?",
    "changed": "the router changed by {by}",
}


def _routers(evidence: Evidence) -> Iterator[str]:
    """Routers that do not fit their experts."""

    def fault(layer: LayerComparison) -> str | None:
        is_moved = any(e.source not in (None, e.slot) and not e.is_far for e in layer.experts)
        is_moved = is_moved and len(layer.experts) == layer.num_experts
        is_moved = is_moved and not any(e.kind == "copied" for e in layer.experts)
        if layer.router == "without experts":
            return "both moved" if is_moved else "rows moved"
        if layer.router in ("unmoved", "changed") and is_moved:
            return "experts moved"
        is_dense = min(len(layer.experts), layer.num_experts) == 1
        if layer.router == "unrelated" and not is_dense and any(s is not None for s in layer.sources):
            return "new"
        return "changed" if layer.router == "changed" and layer.router_change is not None else None

    faults = evidence.layers_by(fault)
    for kind, text in _ROUTERS.items():
        if layers := faults.get(kind):
            figures = [layer.router_change for layer in layers if layer.router_change is not None]
            yield f"{evidence.in_layers(layers)} {text.format(by=percent_range(figures or [0.0]))}"
    if stayed := [tensor.name for tensor in evidence.tensors if tensor.stayed]:
        yield f"experts and router rows moved and {listed(stayed)} did not: tokens reach the wrong experts"


_FAULTS = {
    "gate_up_swapped": "gate_proj and up_proj are swapped in {where}{rest}: converted with the halves the other way "
    "round? swap them back",
    "interleaving": "rows of gate_proj and up_proj are interleaved that should be joined, or the reverse in "
    "{where}{rest}: sort them back",
    "transposed": "projections are transposed in {where}{rest}: converted from a layout [in, out]? transpose them back",
    "mixed": "projections hold A's values in another order, not row by row, in {where}: transposed, or read in another "
    "shape?",
    "scaled": "off by a constant factor{factors}: {where}; was a scale not applied?",
    "zero": "zero, or next to it, in one projection at least: {where}; was it ever written?",
    "unrelated": "unrelated to every expert of A: {where}{scores}; left at the random start, or from another model?",
}


def _foreign(evidence: Evidence) -> Iterator[str]:
    """Projections and biases that are not A's, of experts that are."""
    for names in dict.fromkeys(expert.foreign for _, expert in evidence.experts if expert.foreign):
        where = evidence.where(place for place in evidence.experts if place[1].foreign == names)
        verb, ask = "is" if len(names) == 1 else "are", "lost, or another expert's?"
        yield f"{joined(names)} {verb} not A's in {where}, and the rest is: {ask}"


def _fault(expert: ExpertComparison) -> str:
    """The kind; of transposed ones "mixed" where not even their units were found."""
    return "mixed" if expert.kind == "transposed" and expert.units is None else expert.kind


def _faults(evidence: Evidence) -> Iterator[str]:
    """Experts that are stored wrongly, empty, or somebody else's; and those that are nowhere."""
    for kind, text in _FAULTS.items():
        places = [(layer, expert) for layer, expert in evidence.experts if _fault(expert) == kind and not layer.note]
        if not places or (kind == "unrelated" and evidence.is_unrelated):
            continue
        experts, factors = [e for _, e in places], _factors(places)
        parts = [_changes(experts)] if any((e.change or 0.0) > _NOISE for e in experts) else []
        parts += [f"off by a constant factor, {factors}"] if factors else []
        yield text.format(
            where=evidence.where(places),
            rest=f" (otherwise {'; '.join(parts)})" if parts else "",
            factors=f" ({factors})" if factors else "",
            scores=f" ({scores})" if (scores := _scores(places)) else "",
        )
    if evidence.is_upcycled or evidence.is_unrelated:
        return

    def lost(layer: LayerComparison) -> tuple[int, ...]:
        is_far = any(expert.is_far for expert in layer.experts)
        return () if is_far or len(layer.experts) < layer.num_experts else layer.missing

    if groups := evidence.layers_by(lost):
        shown = [f"{numbered('expert', m)} {evidence.in_layers(layers)}" for m, layers in groups.items()]
        yield f"nowhere in B: {listed(shown)}"


def _moved(evidence: Evidence) -> Iterator[str]:
    """Experts and units that moved, where nothing above has said so."""
    if evidence.same_function or evidence.is_upcycled or evidence.trained:
        return
    layers = [layer for layer in evidence.layers if layer.router == "with experts"]
    layers = [layer for layer in layers if len(layer.experts) == layer.num_experts]
    if moved := [e for layer in layers for e in layer.experts if e.kind == "moved"]:
        yield f"{evidence.in_layers(layers)} {len(moved)} experts stand in other slots, router rows with them"
    for what, holds in (
        ("the units stand in another order", lambda e: e.units == "reordered"),
        ("units have other signs, which the function does not see", lambda e: e.signs and e.units == "in place"),
        ("units have other scales, which the function does not see", lambda e: e.scales),
    ):
        if places := [place for place in evidence.experts if place[1].source is not None and holds(place[1])]:
            yield f"in {evidence.where(places)} {what}"


def _shared(evidence: Evidence) -> Iterator[str]:
    """Shared experts, by kind."""
    known = {"identical", "rounded", "not_finite"}
    known |= {"changed", "moved"} if evidence.same_function or evidence.quantised else set()
    for kind in dict.fromkeys(expert.kind for _, expert in evidence.shared if expert.kind not in known):
        places = [place for place in evidence.shared if place[1].kind == kind]
        parts = [] if kind == "changed" else [kind.replace("_", " ")]
        parts += [factors] if (factors := _factors(places)) else []
        parts += [_changes(e for _, e in places)] if any((e.change or 0.0) > _NOISE for _, e in places) else []
        yield f"shared experts {evidence.in_layers(layer for layer, _ in places)}: {', '.join(parts)}"


def _settings(evidence: Evidence) -> Iterator[str]:
    if evidence.settings:
        yield f"what the models compute differs: {'; '.join(evidence.settings[:MOST_NAMED])}"


_TENSORS = {
    "unrelated": "unrelated to A's; left at their random start?",
    "zero": "zero in B and not in A",
    "transposed": "transposed",
    "scaled": "off by a constant factor",
    "shape": "of another shape",
    "missing in B": "in A only",
    "missing in A": "in B only",
}


def _other_tensors(evidence: Evidence) -> Iterator[str]:
    """All other tensors, by kind."""
    by: dict[str, list[TensorComparison]] = defaultdict(list)
    for tensor in evidence.tensors:
        if tensor.name not in evidence.told:
            by[tensor.kind if tensor.kind != "missing" else f"missing in {tensor.missing_in}"].append(tensor)
    unrelated = evidence.is_unrelated and not any(tensor.is_related for tensor in evidence.tensors)
    for kind, text in _TENSORS.items():
        if (tensors := by[kind]) and not (unrelated and kind in ("unrelated", "scaled")):
            yield f"{counted(len(tensors), 'tensor')} {text}: {listed([tensor.name for tensor in tensors])}"
    figures = [t.change for t in by["changed"] if not t.is_router and t.change is not None]
    if figures and not unrelated:
        yield f"{counted(len(figures), 'other tensor')} changed by {percent_range(figures)}"


def _notes(evidence: Evidence) -> Iterator[str]:
    for note, layers in evidence.layers_by(lambda layer: layer.note).items():
        yield f"experts not compared {evidence.in_layers(layers)}: {note}"


def _rest(evidence: Evidence) -> Iterator[str]:
    """How much is A's bit for bit, where not all is."""
    experts = [e for _, e in evidence.of("identical", "moved") if e.change is None]
    tensors = len(evidence.tensors) - len(evidence.changed_tensors)
    if experts and not evidence.same_function:
        yield (
            f"{len(experts)} of {len(evidence.experts)} experts and {tensors} of {len(evidence.tensors)} other "
            "tensors are A's bit for bit, wherever they stand"
        )


_RULES: tuple[Callable[[Evidence], Iterator[str]], ...] = (
    _not_finite,
    _whole,
    _repeated,
    _pruned,
    _layers,
    _routers,
    _foreign,
    _faults,
    _moved,
    _shared,
    _settings,
    _other_tensors,
    _notes,
    _rest,
)


def _nothing(evidence: Evidence) -> Iterator[str]:
    kinds = Counter(expert.kind for _, expert in evidence.experts)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none"
    differing = f"{len(evidence.changed_tensors)} of {len(evidence.tensors)} other tensors differ"
    yield f"nothing recognised: experts: {counts}; {differing}"


def _routers_alone_changed(evidence: Evidence) -> bool:
    changed = evidence.changed_tensors
    in_place = all(layer.router in ("unmoved", "changed") for layer in evidence.layers)
    return bool(changed) and in_place and all(t.is_router and t.change is not None for t in changed)


def _is_coded(evidence: Evidence, experts: Sequence[ExpertComparison]) -> bool:
    """Whether matrices but for routers differ by no more than codes leave, and all else, which has none, does not."""
    rest = [tensor for tensor in evidence.tensors if tensor.kind not in ("identical", "rounded")]
    in_place = all(e.source == e.slot and e.kind in _SIMPLE for e in experts)
    coded = all(tensor.kind == "changed" and tensor.is_matrix and not tensor.is_router for tensor in rest)
    return in_place and coded and all((one.change or 0.0) < _CODED for one in (*experts, *rest))


def _period(layer: LayerComparison) -> int | None:
    """The number of experts that are repeated again and again to fill the layer; None if they are not."""
    sources, count = layer.sources, len(layer.sources)
    if None in sources or not any(expert.kind == "copied" for expert in layer.experts):
        return None
    for period in range(1, count // 2 + 1):
        if count % period == 0 and all(sources[k] == sources[k % period] for k in range(count)):
            return period if len(set(sources[:period])) == period else None
    return None


def _changes(experts: Iterable[ExpertComparison]) -> str:
    figures = [e.change for e in experts if e.change is not None]
    return "unchanged" if not figures or max(figures) < _NOISE else f"changed by {percent_range(figures)}"


def _scores(places: Sequence[Place]) -> str:
    """`z = -0.3 to 2.1`."""
    zs = [expert.z for _, expert in places if expert.z is not None]
    figures = list(dict.fromkeys(f"{z:.1f}" for z in (min(zs), max(zs)))) if zs else []
    return f"z = {' to '.join(figures)}" if figures else ""


def _factors(places: Sequence[Place]) -> str:
    """`gate_proj x 0.5, up_proj or down_proj x 0.4`, or the range of such; empty where none is off."""
    named = sorted({text for _, expert in places if (text := _factor(expert.factors))})
    return f"{named[0]} to {named[-1]}" if len(named) > 2 else " and ".join(named)


def _factor(factors: tuple[float, float, float]) -> str:
    """up_proj and down_proj are told apart where their scales are not free."""
    gate, up, down = factors
    names = {"gate_proj": gate, "up_proj" if abs(down - 1) > _OFF else "up_proj or down_proj": up, "down_proj": down}
    return ", ".join(f"{name} x {factor:.3g}" for name, factor in names.items() if abs(factor - 1) > _OFF)


def _stack(name: str) -> tuple[str, int | None]:
    """The name of the stack that a layer stands in, and its number there; None without."""
    head, *rest = name.split(".")
    parts = [head]
    for part in rest:
        if part.isdigit():
            return ".".join(parts), int(part)
        parts.append(part)
    return name, None
