"""What the evidence means, in plain sentences: the cause, the figures that it rests on, and what to do."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .experts import ExpertComparison
from .kinds import Kind
from .layers import LayerComparison
from .tensors import TensorComparison

_MOST_NAMED = 4
_NOISE = 1e-6
UNCHANGED = ("identical", "rounded")


@dataclass(frozen=True)
class Evidence:
    """All that sentences are made from.

    Args:
        layers, tensors: see `Comparison`.
        settings: differences of the configurations that change the function, in words.
        missing_layers: numbers of layers of A that B lacks, in words.
        notes: what could not be compared, in words.
        same_function: see `Comparison`.
    """

    layers: tuple[LayerComparison, ...]
    tensors: tuple[TensorComparison, ...]
    settings: tuple[str, ...] = ()
    missing_layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    same_function: bool = False
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
    """What B is as a whole."""
    experts, changed = evidence.experts, evidence.changed_tensors
    if not experts and not evidence.tensors:
        return
    kinds = Counter(expert.kind for _, expert in experts)
    moved = [e for _, e in experts if e.source is not None and (e.source != e.slot or e.units == "reordered")]
    total = len(experts)
    if evidence.same_function:
        if moved or any(t.kind == "moved" for t in evidence.tensors):
            yield (
                f"B is A rewritten: the same function, {_moves(evidence)}, nothing changed beyond rounding: "
                f"{total} experts, {len(evidence.tensors)} other tensors"
            )
        elif kinds["identical"] == total and not changed:
            yield f"A and B are identical, bit for bit: {total} experts, {len(evidence.tensors)} other tensors"
        else:
            figures = f"{total} experts, {len(evidence.tensors)} other tensors"
            yield f"B is A in another dtype or with other unit signs or scales, the same function: {figures}"
        return
    lossy = [t for t in changed if t.kind == "rounded"]
    if (kinds["rounded"] or lossy) and kinds["rounded"] + kinds["identical"] == total and len(lossy) == len(changed):
        yield f"B is A rounded to another dtype: {_changes(e for _, e in experts)} of the weights of {total} experts"
        return
    if _is_upcycled(evidence):
        yield (
            f"every expert of B comes from the dense MLP of A (upcycled; {_changes(e for _, e in experts)}): "
            f"{total} experts in {len(evidence.layers)} layers"
        )
        return
    if experts and kinds["unrelated"] == total:
        if all(layer.note for layer in evidence.layers):
            return
        others = [t for t in evidence.tensors if t.kind in (*UNCHANGED, "changed", "scaled")]
        zs = [e.z for _, e in experts if e.z is not None]
        score = f"; z is {min(zs):.1f} to {max(zs):.1f}, chance gives 0 and seldom 3" if zs else ""
        if not _has_related_tensors(evidence):
            yield f"the weights are unrelated: all {total} experts are no nearer than chance{score}"
        else:
            yield (
                f"no expert of B is related to any of A ({total} experts{score}), while {len(others)} other tensors "
                "are: were the experts left at their random start?"
            )
        return
    if _experts_alone_kept(evidence, kinds, total, changed):
        yield (
            f"every expert is bit-identical to A's ({total}) while {len(changed)} other tensors changed: "
            "was an adapter on the experts lost? merge it again and compare"
        )
        return
    others_changed = [t for t in changed if not t.is_router]
    trained = [e for _, e in evidence.sourced if (e.change or 0.0) > _NOISE]
    if len(evidence.sourced) == total and trained and kinds["changed"] + kinds["moved"] + kinds["identical"] == total:
        if kinds["changed"] + kinds["moved"] == total or others_changed:
            some = f"all {total} experts" if len(trained) == total else f"{len(trained)} of {total} experts"
            place = f"{some} in place, changed" if not moved else f"{_moves(evidence)}; {some} changed"
            yield f"B is a fine-tune of A: {place} by {_changes(iter(trained), bare=True)}"
            return
        if trained and not changed:
            yield (
                f"only experts differ: {len(trained)} of {total} changed by {_changes(iter(trained), bare=True)}, "
                "all other tensors are A's bit for bit"
            )
            return
    if kinds["identical"] == total and changed and all(t.is_router for t in changed):
        figures = [t.change for t in changed if t.change is not None]
        by = f", by {_range(figures)}" if figures else ""
        yield f"only routers differ ({len(changed)} tensors{by}): all {total} experts and all other tensors are A's"


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
        yield f"B is A without {_experts(missing)}, {order} ({_in_layers(layers, evidence)})"


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
    told = {
        "gate_up_swapped": "gate_proj and up_proj are swapped{extra}: converted from a layout with the halves the other "
        "way round? exchange them",
        "interleaving": "rows of gate_proj and up_proj are interleaved where they should be joined, or the "
        "reverse{extra}: reorder the rows of gate_up_proj",
        "transposed": "projections are transposed{extra}: converted from a layout [in, out]? transpose them back",
        "zero": "all weights out of the units are zero: the experts compute nothing; were they written at all?",
    }
    for kind, text in told.items():
        if experts := evidence.of(kind):
            extra = f" (otherwise {_changes(e for _, e in experts)})" if _largest(experts) > _NOISE else ""
            yield f"in {_where(experts, evidence)} {text.format(extra=extra)}"
    if scaled := evidence.of("scaled"):
        figures = _factors(scaled)
        yield f"{_where(scaled, evidence)} are off by a constant factor, {figures}: a scale that was not applied?"
    unrelated = evidence.of("unrelated")
    if unrelated and len(unrelated) < len(evidence.experts):
        zs = [expert.z for _, expert in unrelated if expert.z is not None]
        score = f" (z = {min(zs):.1f} to {max(zs):.1f})" if zs else ""
        yield (
            f"{_where(unrelated, evidence)} are unrelated to every expert of A{score}: left at their random start, or "
            "from another model?"
        )
    replaced = [layer for layer in evidence.layers if layer.missing and len(layer.experts) >= layer.num_experts]
    if replaced and not _is_upcycled(evidence) and len(unrelated) < len(evidence.experts):
        groups: dict[tuple[int, ...], list[LayerComparison]] = defaultdict(list)
        for layer in replaced:
            groups[layer.missing].append(layer)
        shown = [f"{_experts(m)} {_in_layers(ls, evidence)}" for m, ls in list(groups.items())[:_MOST_NAMED]]
        more = f", and {len(groups) - _MOST_NAMED} more such sets" if len(groups) > _MOST_NAMED else ""
        yield f"nowhere in B: {'; '.join(shown)}{more}"


def _moved(evidence: Evidence) -> Iterator[str]:
    """Experts that moved with their routers, where nothing above has said so."""
    if evidence.same_function or _is_upcycled(evidence):
        return
    layers = [
        layer
        for layer in evidence.layers
        if layer.router == "with experts" and len(layer.experts) == layer.num_experts
        and any(e.kind == "moved" for e in layer.experts)
    ]  # fmt: skip
    moved = [(layer, e) for layer in layers for e in layer.experts if e.source is not None and e.source != e.slot]
    if moved:
        yield f"{_in_layers(layers, evidence)} {len(moved)} experts stand in other slots, router rows with them"
    for what, holds in (
        ("the units stand in another order", lambda e: e.units == "reordered"),
        ("units have other signs, which the function does not see", lambda e: e.signs),
        ("units have other scales, which the function does not see", lambda e: e.scales),
    ):
        experts = [(layer, e) for layer, e in evidence.sourced if holds(e)]
        if experts:
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
        by[tensor.kind if tensor.kind != "missing" else f"missing in {tensor.missing_in}"].append(tensor)
    words = {
        "unrelated": "tensors are unrelated to A's: left at their random start?",
        "zero": "tensors are zero in B and not in A",
        "transposed": "tensors are transposed",
        "scaled": "tensors are off by a constant factor",
        "shape": "tensors have another shape",
        "missing in B": "tensors of A are not in B",
        "missing in A": "tensors of B are not in A",
    }
    everything = evidence.experts and len(evidence.of("unrelated")) == len(evidence.experts)
    for kind, text in words.items():
        if (tensors := by[kind]) and not (kind == "unrelated" and everything and not _has_related_tensors(evidence)):
            yield f"{len(tensors)} {text}: {_listed([tensor.name for tensor in tensors])}"
    changed = [t for t in by["changed"] if not t.is_router]
    if changed and (figures := [t.change for t in changed if t.change is not None]):
        yield f"{len(changed)} other tensors changed by {_range(figures)}"


def _settings(evidence: Evidence) -> Iterator[str]:
    if evidence.settings:
        yield f"config.json differs: {'; '.join(evidence.settings[:_MOST_NAMED])}"


def _notes(evidence: Evidence) -> Iterator[str]:
    by: dict[str, list[LayerComparison]] = defaultdict(list)
    for layer in evidence.layers:
        if layer.note:
            by[layer.note].append(layer)
    for note, layers in by.items():
        yield f"experts not compared {_in_layers(layers, evidence)}: {note}"
    yield from evidence.notes


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
)


def _nothing(evidence: Evidence) -> str:
    kinds = Counter(expert.kind for _, expert in evidence.experts)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none"
    differing = f"{len(evidence.changed_tensors)} of {len(evidence.tensors)} other tensors differ"
    return f"nothing recognised: experts: {counts}; {differing}"


def _is_upcycled(evidence: Evidence) -> bool:
    layers = [layer for layer in evidence.layers if len(layer.experts) > 1]
    return bool(layers) and all(
        layer.num_experts == 1 and all(source == 0 for source in layer.sources) for layer in layers
    )


def _experts_alone_kept(
    evidence: Evidence, kinds: Counter[Kind], total: int, changed: Sequence[TensorComparison]
) -> bool:
    rest = [t for t in changed if t.kind in ("changed", "scaled") and not t.is_router]
    shared = [expert for layer in evidence.layers for expert in layer.shared_experts]
    return total > 0 and kinds["identical"] == total and all(e.kind == "identical" for e in shared) and len(rest) > 0


def _has_related_tensors(evidence: Evidence) -> bool:
    return any(tensor.is_related for tensor in evidence.tensors)


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


def _changes(experts: Iterable[ExpertComparison], bare: bool = False) -> str:
    figures = [e.change for e in experts if e.change is not None]
    if not figures or max(figures) < _NOISE:
        return "nothing" if bare else "unchanged"
    return _range(figures) if bare else f"changed by {_range(figures)}"


def _largest(experts: Sequence[tuple[LayerComparison, ExpertComparison]]) -> float:
    return max((e.change or 0.0 for _, e in experts), default=0.0)


def _range(figures: Sequence[float]) -> str:
    low, high = _percent(min(figures)), _percent(max(figures))
    return f"{high} %" if low == high else f"{low} to {high} %"


def _percent(figure: float) -> str:
    return f"{100 * figure:.2g}" if figure < 1 else f"{100 * figure:.0f}"


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


def _times(count: int) -> str:
    return {2: "twice"}.get(count, f"{_word(count)} times")


def _word(count: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[count] if count < len(words) else str(count)
