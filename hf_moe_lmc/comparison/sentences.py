"""What the evidence means, in plain sentences: the cause, the figures that it rests on, and what to do."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from .experts import ExpertComparison
from .layers import LayerComparison
from .tensors import TensorComparison

_MOST_NAMED = 4
_NOISE = 1e-6
_CODED = 0.2  # relative distance that codes of 8 or 4 bits leave at most
UNCHANGED = ("identical", "rounded")


@dataclass(frozen=True)
class Evidence:
    """All that sentences are made from.

    Args:
        layers, tensors: see `Comparison`.
        settings: differences of the configurations that change the function, in words.
        missing_layers: numbers of layers of A that B lacks, in words.
        told: names of tensors that need no mention: they belong to layers that are missing.
        same_function: see `Comparison`.
        quantised: which of the models is stored quantised, if it is one of them.
    """

    layers: tuple[LayerComparison, ...]
    tensors: tuple[TensorComparison, ...]
    settings: tuple[str, ...] = ()
    missing_layers: tuple[str, ...] = ()
    told: frozenset[str] = frozenset()
    same_function: bool = False
    quantised: Literal["A", "B"] | None = None
    experts: list[tuple[LayerComparison, ExpertComparison]] = field(init=False)

    def __post_init__(self) -> None:
        experts = [(layer, expert) for layer in self.layers for expert in layer.experts]
        object.__setattr__(self, "experts", experts)

    def of(self, *kinds: str) -> list[tuple[LayerComparison, ExpertComparison]]:
        """The experts of some kinds."""
        return [(layer, expert) for layer, expert in self.experts if expert.kind in kinds]

    @property
    def sourced(self) -> list[tuple[LayerComparison, ExpertComparison]]:
        """The experts that come from one of A."""
        return [(layer, expert) for layer, expert in self.experts if expert.source is not None]

    @property
    def changed_tensors(self) -> list[TensorComparison]:
        """Tensors that are not A's; those that only moved are."""
        return [t for t in self.tensors if t.kind != "identical" and not (t.kind == "moved" and t.change is None)]


def describe(evidence: Evidence) -> tuple[str, ...]:
    """All that is recognised, most important first; of nothing that is recognised, one sentence that says so."""
    told = [sentence for rule in _RULES for sentence in rule(evidence)]
    return tuple(told) or (_nothing(evidence),)


def _not_finite(evidence: Evidence) -> Iterator[str]:
    where = [*_places(evidence.of("not_finite")), *(t.name for t in evidence.tensors if t.kind == "not_finite")]
    if where:
        yield f"NaN or infinite values in {_listed(where)}: the file is damaged; fetch or export it again"


def _whole(evidence: Evidence) -> Iterator[str]:
    """B as a whole, where one sentence says it all, or most."""
    experts, changed = evidence.experts, evidence.changed_tensors
    total, figures = len(experts), f"{len(experts)} experts, {len(evidence.tensors)} other tensors"
    kinds = Counter(expert.kind for _, expert in experts)
    if evidence.same_function:
        if _has_moved(evidence):
            yield f"B is A rewritten, the same function: {_moves(evidence)}, nothing else beyond rounding; {figures}"
        elif kinds["identical"] == total and not changed:
            yield f"A and B are identical, bit for bit: {figures}"
        else:
            yield f"B is A in another dtype, or with other unit signs or scales, the same function: {figures}"
    elif _is_rounded(evidence):
        yield f"B is A rounded to another dtype: {total} experts, {_changes(e for _, e in experts)}"
    elif _is_upcycled(evidence):
        changes = _changes(e for _, e in experts)
        yield (
            f"every expert of B comes from the dense MLP of A (upcycled; {changes}): {total} experts in "
            f"{_counted(len(evidence.layers), 'layer')}"
        )
    elif _is_unrelated(evidence):
        score = f"; {scores}, and chance alone gives -3 to 3" if (scores := _scores(experts)) else ""
        if related := [t for t in evidence.tensors if t.is_related]:
            yield (
                f"no expert of B is related to any of A ({total} experts{score}), while {len(related)} other tensors "
                "are: were the experts left at their random start?"
            )
        elif not all(layer.note for layer in evidence.layers):
            yield f"the weights are unrelated: none of {total} experts is nearer to A than chance{score}"
    elif _experts_alone_kept(evidence):
        yield (
            f"every expert is bit-identical to A's ({total}) while {len(changed)} other tensors changed: was an "
            "adapter on the experts lost? merge it again and compare"
        )
    elif evidence.quantised and _is_coded(evidence):
        text = "B is A quantised" if evidence.quantised == "B" else "A is B quantised"
        yield f"{text}: {total} experts in place, {_changes(e for _, e in experts)}, norms and routers bit-identical"
    elif trained := _trained(evidence):
        some = f"all {total} experts" if len(trained) == total else f"{len(trained)} of {total} experts"
        by = _range([e.change for e in trained if e.change is not None])
        if all(expert.is_far for expert in trained):
            yield (
                f"B's experts resemble A's more than chance and are far from them ({some} changed by {by}): trained "
                "from other starts? align before you merge, and compare losses"
            )
        elif not changed:
            yield f"only experts differ: {some} changed by {by}, all else is A's bit for bit"
        elif _has_moved(evidence):
            yield f"B is a fine-tune of A in another order: {_moves(evidence)}; {some} changed by {by}"
        else:
            yield f"B is a fine-tune of A: {some} in place, changed by {by}"
    elif _routers_alone_changed(evidence):
        by = _range([t.change for t in changed if t.change is not None])
        yield f"only routers differ ({_counted(len(changed), 'tensor')}, by {by}): all {total} experts are A's"


def _repeated(evidence: Evidence) -> Iterator[str]:
    """Copies: of expert-parallel ranks, or of one expert."""
    if _is_upcycled(evidence):
        return
    repeats: dict[tuple[int, int], list[LayerComparison]] = defaultdict(list)
    rest: list[tuple[LayerComparison, ExpertComparison]] = []
    for layer in evidence.layers:
        period = _period(layer)
        copies = [(layer, expert) for expert in layer.experts if expert.kind == "copied"]
        if period and copies:
            repeats[period, len(layer.experts) // period].append(layer)
        else:
            rest += copies
    for (_, times), layers in repeats.items():
        first = sorted({expert.source for expert in layers[0].experts if expert.source is not None})
        yield (
            f"experts {_numbers(first)} are repeated {_times(times)} {_in_layers(layers, evidence)}: exported with "
            f"{_word(times)} expert-parallel ranks? gather the experts of all ranks"
        )
    if rest:
        pairs = Counter((expert.slot, expert.source) for _, expert in rest)
        shown = [f"slot {slot} is a copy of expert {source}" for (slot, source), _ in pairs.most_common(_MOST_NAMED)]
        layers = _unique(layer for layer, _ in rest)
        more = f" and {len(pairs) - _MOST_NAMED} more" if len(pairs) > _MOST_NAMED else ""
        yield f"copies {_in_layers(layers, evidence)}: {', '.join(shown)}{more} ({len(rest)} slots in all)"


def _pruned(evidence: Evidence) -> Iterator[str]:
    """Experts of A that are nowhere in B, where B has fewer."""
    groups: dict[tuple[int, ...], list[LayerComparison]] = defaultdict(list)
    for layer in evidence.layers:
        if len(layer.experts) < layer.num_experts and layer.missing and all(s is not None for s in layer.sources):
            groups[layer.missing].append(layer)
    for missing, layers in groups.items():
        held = [source for source in layers[0].sources if source is not None]
        order = "renumbered" if held == sorted(held) else "in another order"
        if held == list(range(len(held))):
            order = "the others in place"
        changes = _changes(e for layer in layers for e in layer.experts)
        yield f"B is A without {_experts(missing)}, {order}, {changes} ({_in_layers(layers, evidence)})"


def _missing_layers(evidence: Evidence) -> Iterator[str]:
    yield from evidence.missing_layers


def _routers(evidence: Evidence) -> Iterator[str]:
    """Routers that do not fit their experts."""
    by: dict[str, list[LayerComparison]] = defaultdict(list)
    for layer in evidence.layers:
        is_moved = any(s is not None and s != e.slot for e, s in zip(layer.experts, layer.sources, strict=True))
        kept = len(layer.experts) == layer.num_experts and not any(e.kind == "copied" for e in layer.experts)
        if layer.router == "without experts":
            by["rows and experts moved apart" if is_moved and kept else "rows moved"].append(layer)
        elif layer.router in ("unmoved", "changed") and is_moved and kept:
            by["experts moved"].append(layer)
        elif layer.router == "unrelated" and not _is_upcycled(evidence) and evidence.sourced:
            by["new"].append(layer)
        elif layer.router == "changed" and layer.router_change is not None:
            by["changed"].append(layer)
    advice = "tokens reach the wrong experts; move both by the same order (`hf-moe-lmc align` finds it)"
    if layers := by["rows moved"]:
        yield f"{_in_layers(layers, evidence)} the router rows moved and the experts did not: {advice}"
    if layers := by["rows and experts moved apart"]:
        yield f"{_in_layers(layers, evidence)} router rows and experts moved, by different orders: {advice}"
    if layers := by["experts moved"]:
        yield f"{_in_layers(layers, evidence)} the experts moved and the router rows did not: {advice}"
    if layers := by["new"]:
        yield (
            f"{_in_layers(layers, evidence)} the router is unrelated to A's while experts are not: left at its random "
            "start, or trained anew?"
        )
    if layers := by["changed"]:
        figures = [layer.router_change for layer in layers if layer.router_change is not None]
        yield f"{_in_layers(layers, evidence)} the router changed by {_range(figures)}"


def _faults(evidence: Evidence) -> Iterator[str]:
    """Experts that are stored wrongly, empty, or somebody else's."""
    for kind, what, advice in (
        ("gate_up_swapped", "gate_proj and up_proj are swapped", "converted with the halves the other way round? swap"),
        ("interleaving", "rows of gate_proj and up_proj are interleaved that should be joined, or the reverse", "sort"),
        ("transposed", "projections are transposed", "converted from a layout [in, out]? transpose"),
    ):
        if experts := evidence.of(kind):
            rest = f" (otherwise {_changes(e for _, e in experts)})" if _largest(experts) > _NOISE else ""
            yield f"{what} in {_where(experts, evidence)}{rest}: {advice} them back"
    if scaled := evidence.of("scaled"):
        factors, where = _factors(scaled), _where(scaled, evidence)
        yield f"off by a constant factor ({factors}): {where}; was a scale not applied?"
    if zero := evidence.of("zero"):
        yield f"zero, or next to it, in one projection at least: {_where(zero, evidence)}; was it ever written?"
    unrelated = [] if _is_unrelated(evidence) else evidence.of("unrelated")
    if unrelated:
        score = f" ({scores})" if (scores := _scores(unrelated)) else ""
        yield (
            f"unrelated to every expert of A: {_where(unrelated, evidence)}{score}; left at the random start, or from "
            "another model?"
        )
    groups: dict[tuple[int, ...], list[LayerComparison]] = defaultdict(list)
    for layer in evidence.layers:
        is_far = any(expert.is_far for expert in layer.experts)
        if layer.missing and len(layer.experts) >= layer.num_experts and not is_far:
            groups[layer.missing].append(layer)
    if groups and not _is_upcycled(evidence) and not _is_unrelated(evidence):
        shown = [f"{_experts(m)} {_in_layers(ls, evidence)}" for m, ls in list(groups.items())[:_MOST_NAMED]]
        more = f", and {len(groups) - _MOST_NAMED} more such sets" if len(groups) > _MOST_NAMED else ""
        yield f"nowhere in B: {'; '.join(shown)}{more}"


def _moved(evidence: Evidence) -> Iterator[str]:
    """Experts and units that moved, where nothing above has said so."""
    if evidence.same_function or _is_upcycled(evidence) or _trained(evidence):
        return
    layers = [layer for layer in evidence.layers if layer.router == "with experts"]
    layers = [layer for layer in layers if len(layer.experts) == layer.num_experts]
    if moved := [e for layer in layers for e in layer.experts if e.kind == "moved"]:
        yield f"{_in_layers(layers, evidence)} {len(moved)} experts stand in other slots, router rows with them"
    for what, holds in (
        ("the units stand in another order", lambda e: e.units == "reordered"),
        ("units have other signs, which the function does not see", lambda e: e.signs and e.units == "in place"),
        ("units have other scales, which the function does not see", lambda e: e.scales),
    ):
        if experts := [(layer, e) for layer, e in evidence.sourced if holds(e)]:
            yield f"in {_where(experts, evidence)} {what}"


def _shared(evidence: Evidence) -> Iterator[str]:
    """Shared experts, by kind."""
    by: dict[str, list[tuple[LayerComparison, ExpertComparison]]] = defaultdict(list)
    for layer in evidence.layers:
        for expert in layer.shared_experts:
            if expert.kind not in ("identical", "rounded", "changed"):
                by[expert.kind].append((layer, expert))
    for kind, experts in by.items():
        layers = _unique(layer for layer, _ in experts)
        figures = f", {_factors(experts)}" if kind == "scaled" else ""
        yield f"shared experts {_in_layers(layers, evidence)}: {kind.replace('_', ' ')}{figures}"


def _other_tensors(evidence: Evidence) -> Iterator[str]:
    """All other tensors, by kind."""
    by: dict[str, list[TensorComparison]] = defaultdict(list)
    for tensor in evidence.tensors:
        if tensor.name not in evidence.told:
            by[tensor.kind if tensor.kind != "missing" else f"missing in {tensor.missing_in}"].append(tensor)
    unrelated = _is_unrelated(evidence) and not any(tensor.is_related for tensor in evidence.tensors)
    for kind, text in (
        ("unrelated", "unrelated to A's; left at their random start?"),
        ("zero", "zero in B and not in A"),
        ("transposed", "transposed"),
        ("scaled", "off by a constant factor"),
        ("shape", "of another shape"),
        ("missing in B", "in A only"),
        ("missing in A", "in B only"),
    ):
        if (tensors := by[kind]) and not (unrelated and kind in ("unrelated", "scaled")):
            yield f"{_counted(len(tensors), 'tensor')} {text}: {_listed([tensor.name for tensor in tensors])}"
    figures = [t.change for t in by["changed"] if not t.is_router and t.change is not None]
    if figures and not unrelated:
        yield f"{_counted(len(figures), 'other tensor')} changed by {_range(figures)}"


def _settings(evidence: Evidence) -> Iterator[str]:
    if evidence.settings:
        yield f"what the models compute differs: {'; '.join(evidence.settings[:_MOST_NAMED])}"


def _notes(evidence: Evidence) -> Iterator[str]:
    by: dict[str, list[LayerComparison]] = defaultdict(list)
    for layer in evidence.layers:
        if layer.note:
            by[layer.note].append(layer)
    for note, layers in by.items():
        yield f"experts not compared {_in_layers(layers, evidence)}: {note}"


def _rest(evidence: Evidence) -> Iterator[str]:
    """How much is A's bit for bit, where not all is."""
    experts = [e for _, e in evidence.of("identical", "moved") if e.change is None]
    tensors = [tensor for tensor in evidence.tensors if tensor not in evidence.changed_tensors]
    if experts and not evidence.same_function:
        yield (
            f"{len(experts)} of {len(evidence.experts)} experts and {len(tensors)} of {len(evidence.tensors)} other "
            "tensors are A's bit for bit, wherever they stand"
        )


_RULES: tuple[Callable[[Evidence], Iterator[str]], ...] = (
    _not_finite,
    _whole,
    _repeated,
    _pruned,
    _missing_layers,
    _routers,
    _faults,
    _moved,
    _shared,
    _settings,
    _other_tensors,
    _notes,
    _rest,
)


def _nothing(evidence: Evidence) -> str:
    kinds = Counter(expert.kind for _, expert in evidence.experts)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none"
    differing = f"{len(evidence.changed_tensors)} of {len(evidence.tensors)} other tensors differ"
    return f"nothing recognised: experts: {counts}; {differing}"


def _has_moved(evidence: Evidence) -> bool:
    moved = any(e.source != e.slot or e.units == "reordered" for _, e in evidence.sourced)
    return moved or any(tensor.kind == "moved" for tensor in evidence.tensors)


def _is_rounded(evidence: Evidence) -> bool:
    kinds = {expert.kind for _, expert in evidence.experts} | {tensor.kind for tensor in evidence.tensors}
    return kinds in ({"rounded"}, {"rounded", "identical"})


def _is_coded(evidence: Evidence) -> bool:
    """Whether matrices but for routers differ by no more than codes leave, and all else, which has none, does not."""
    experts = [expert for layer in evidence.layers for expert in (*layer.experts, *layer.shared_experts)]
    rest = [tensor for tensor in evidence.tensors if tensor.kind not in UNCHANGED]
    in_place = all(e.source == e.slot and e.kind in (*UNCHANGED, "changed") for e in experts)
    coded = all(tensor.kind == "changed" and tensor.is_matrix and not tensor.is_router for tensor in rest)
    return in_place and coded and all((one.change or 0.0) < _CODED for one in (*experts, *rest))


def _is_unrelated(evidence: Evidence) -> bool:
    return bool(evidence.experts) and len(evidence.of("unrelated")) == len(evidence.experts)


def _is_upcycled(evidence: Evidence) -> bool:
    layers = [layer for layer in evidence.layers if len(layer.experts) > 1]
    return bool(layers) and all(
        layer.num_experts == 1 and all(source == 0 for source in layer.sources) for layer in layers
    )


def _experts_alone_kept(evidence: Evidence) -> bool:
    rest = [t for t in evidence.changed_tensors if t.kind in ("changed", "scaled") and not t.is_router]
    experts = [expert for layer in evidence.layers for expert in (*layer.experts, *layer.shared_experts)]
    return bool(experts and rest) and all(expert.kind == "identical" for expert in experts)


def _routers_alone_changed(evidence: Evidence) -> bool:
    experts, changed = evidence.experts, evidence.changed_tensors
    return (
        bool(experts and changed)
        and len(evidence.of("identical")) == len(experts)
        and all(tensor.is_router and tensor.change is not None for tensor in changed)
        and all(layer.router in ("unmoved", "changed") for layer in evidence.layers)
    )


def _trained(evidence: Evidence) -> list[ExpertComparison]:
    """The experts that changed where they stand or moved to, where most or only such did, and none was removed."""
    if any(len(layer.experts) != layer.num_experts for layer in evidence.layers):
        return []
    trained = [e for _, e in evidence.of("changed", "moved") if (e.change or 0.0) > _NOISE]
    others = [e for _, e in evidence.experts if e.kind not in ("changed", "moved", "identical")]
    return trained if 2 * len(trained) > len(evidence.experts) or not others else []


def _moves(evidence: Evidence) -> str:
    """`experts in another order in 12 of 12 layers, units reordered in 11`."""
    orders = [layer for layer in evidence.layers if any(e.source not in (None, e.slot) for e in layer.experts)]
    units = [layer for layer in evidence.layers if any(e.units == "reordered" for e in layer.experts)]
    parts = []
    if orders:
        parts.append(f"experts in another order in {len(orders)} of {len(evidence.layers)} layers")
    if units:
        parts.append(f"units reordered in {len(units)} of {len(evidence.layers)} layers")
    if not parts:
        parts.append("dense units reordered")
    return ", ".join(parts)


def _period(layer: LayerComparison) -> int | None:
    """The number of experts that are repeated again and again to fill the layer; None if they are not."""
    sources, count = layer.sources, len(layer.sources)
    if any(source is None for source in sources):
        return None
    for period in range(1, count // 2 + 1):
        if count % period == 0 and all(sources[k] == sources[k % period] for k in range(count)):
            return period if len(set(sources[:period])) == period else None
    return None


def _changes(experts: Iterable[ExpertComparison]) -> str:
    figures = [e.change for e in experts if e.change is not None]
    return "unchanged" if not figures or max(figures) < _NOISE else f"changed by {_range(figures)}"


def _scores(experts: Sequence[tuple[LayerComparison, ExpertComparison]]) -> str:
    """`z = -0.3 to 2.1`."""
    zs = [expert.z for _, expert in experts if expert.z is not None]
    if not zs:
        return ""
    low, high = f"{min(zs):.1f}", f"{max(zs):.1f}"
    return f"z = {low}" if low == high else f"z = {low} to {high}"


def _largest(experts: Sequence[tuple[LayerComparison, ExpertComparison]]) -> float:
    return max((e.change or 0.0 for _, e in experts), default=0.0)


def _range(figures: Sequence[float]) -> str:
    low, high = _percent(min(figures)), _percent(max(figures))
    return f"{high} %" if low == high else f"{low} to {high} %"


def _percent(figure: float) -> str:
    return f"{100 * figure:.2g}" if figure < 0.995 else f"{100 * figure:.0f}"


def _factors(experts: Sequence[tuple[LayerComparison, ExpertComparison]]) -> str:
    product = sorted({_off(e.factors) for _, e in experts})
    if len(product) == 1:
        return product[0]
    return f"{product[0]} to {product[-1]}" if len(product) > 2 else " and ".join(product)


def _off(factors: tuple[float, float, float]) -> str:
    gate, up, down = factors
    parts = [f"gate_proj x {gate:.3g}"] if abs(gate - 1) > 0.01 else []
    out = up * down
    parts += [f"up_proj or down_proj x {out:.3g}"] if abs(out - 1) > 0.01 and down == 1 else []
    if down != 1:
        parts += [f"{name} x {f:.3g}" for name, f in (("up_proj", up), ("down_proj", down)) if abs(f - 1) > 0.01]
    return ", ".join(parts)


def _where(experts: Sequence[tuple[LayerComparison, ExpertComparison]], evidence: Evidence) -> str:
    """`experts 3 and 5 of layers 1 to 4`; the same slots of several layers together."""
    slots: dict[LayerComparison, list[int]] = {}
    for layer, expert in experts:
        slots.setdefault(layer, []).append(expert.slot)
    groups: dict[tuple[int, ...], list[LayerComparison]] = defaultdict(list)
    for layer, own in slots.items():
        groups[tuple(own)].append(layer)
    if len(groups) > _MOST_NAMED:
        return f"{len(experts)} experts of {len(slots)} layers"
    parts = []
    for own, layers in groups.items():
        whole = all(len(own) == len(layer.experts) for layer in layers)
        named = f"all {len(own)} experts" if whole and len(own) > 1 else _experts(own)
        parts.append(f"{named} {_in_layers(layers, evidence)}")
    return _and(parts)


def _places(experts: Sequence[tuple[LayerComparison, ExpertComparison]]) -> list[str]:
    return [f"expert {expert.slot} of {layer.name}" for layer, expert in experts]


def _in_layers(layers: Sequence[LayerComparison], evidence: Evidence) -> str:
    """`in every layer`, or their numbers, or names where these have none."""
    if len(layers) == len(evidence.layers) > 1:
        return "in every layer"
    numbers = [_number(layer.name) for layer in layers]
    stacks = {
        layer.name.split(str(n), 1)[0]
        for layer, n in ((layer, _number(layer.name)) for layer in evidence.layers)
        if n is not None
    }
    if any(number is None for number in numbers) or len(stacks) > 1:
        return f"in {_listed([layer.name for layer in layers])}"
    known = [number for number in numbers if number is not None]
    return f"in layer {known[0]}" if len(known) == 1 else f"in layers {_numbers(known)}"


def _number(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _experts(numbers: Sequence[int]) -> str:
    return f"expert {numbers[0]}" if len(numbers) == 1 else f"experts {_numbers(numbers)}"


def _numbers(numbers: Sequence[int]) -> str:
    """`0, 1 and 4 to 7`."""
    ordered = sorted(set(numbers))
    runs = [[ordered[0], ordered[0]]]
    for before, number in pairwise(ordered):
        if number == before + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    parts = []
    for low, high in runs:
        parts += [f"{low} to {high}"] if high > low + 1 else [str(low), str(high)] if high > low else [str(low)]
    if len(parts) > 12:
        parts = [*parts[:11], f"{len(parts) - 11} more"]
    return _and(parts)


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _listed(names: Sequence[str]) -> str:
    more = [f"{len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
    return _and([*names[:_MOST_NAMED], *more])


def _unique(layers: Iterable[LayerComparison]) -> list[LayerComparison]:
    return list({layer.name: layer for layer in layers}.values())


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _times(count: int) -> str:
    return {2: "twice"}.get(count, f"{_word(count)} times")


def _word(count: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[count] if count < len(words) else str(count)
