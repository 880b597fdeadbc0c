"""Known truth: what was done to experts of a live model, and what a comparison must say of each.

Nothing here uses the package's own words for faults: each is done to stored tensors, the way exports get it wrong.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_moe_lmc.adapters import MoeLayerSpec, alignable_layers
from hf_moe_lmc.comparison.layers import LayerComparison, compare_layers
from hf_moe_lmc.moe import ExpertBank, MoeLayer, act

FAMILIES = ("mixtral", "qwen2_moe", "gpt_oss", "deepseek_v3", "llama4", "switch_transformers", "nemotron_h", "dbrx")
GATED = frozenset(FAMILIES) - {"switch_transformers", "nemotron_h"}


@dataclass(frozen=True)
class Slot:
    """What stands in a slot: the kind before slots are compared, and the expert of A that it is."""

    kind: str
    source: int | None


Truth = list[Slot]


def named(truth: Truth) -> list[tuple[str, int | None]]:
    """(kind, source) of every slot as the issue defines them: moved, and copied for all but the first."""
    held, found = set(), []
    for number, slot in enumerate(truth):
        kind = slot.kind
        if kind in ("identical", "rounded", "changed") and slot.source is not None:
            kind = "copied" if slot.source in held else "moved" if slot.source != number else kind
        held.add(slot.source)
        found.append((kind, slot.source))
    return found


def routed(model: PreTrainedModel) -> list[MoeLayerSpec]:
    """The layers with a router."""
    return [spec for spec in alignable_layers(model) if spec.router]


def edit(model: PreTrainedModel, spec: MoeLayerSpec, change: Callable[[MoeLayer], MoeLayer]) -> None:
    """Write a changed layer back into a live model."""
    tensors = model.state_dict()
    for name, tensor in spec.write(change(_clone(spec.read(tensors))), tensors).items():
        tensors[name].copy_(tensor)


def _set(experts: ExpertBank, j: int, **tensors: Tensor) -> ExpertBank:
    for name, tensor in tensors.items():
        getattr(experts, name)[j] = tensor
    return experts


def _noisy(tensor: Tensor, share: float, generator: torch.Generator) -> Tensor:
    scale = share * tensor.nan_to_num().square().mean().sqrt()
    return tensor + scale * torch.randn(tensor.shape, generator=generator).to(tensor)


def changed(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
    """Noise of 5 %."""
    _set(experts, j, **{name: _noisy(t[j], 0.05, generator) for name, t in experts.tensors().items()})
    return Slot("changed", j)


def unrelated(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
    """Drawn anew, of the same size."""
    for name, tensor in experts.tensors().items():
        drawn = torch.randn(tensor[j].shape, generator=generator).to(tensor) * tensor[j].square().mean().sqrt()
        _set(experts, j, **{name: drawn})
    return Slot("unrelated", None)


def zero(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
    """Never written."""
    _set(experts, j, **{name: torch.zeros_like(tensor[j]) for name, tensor in experts.tensors().items()})
    return Slot("zero", None)


def zero_down(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
    """Only down_proj was never written."""
    _set(experts, j, down_proj=torch.zeros_like(experts.down_proj[j]))
    return Slot("zero", None)


def not_finite(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
    """One value is NaN."""
    experts.up_proj[j, 2, 3] = torch.nan
    return Slot("not_finite", None)


def scaled(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
    """A scale of the output that was not applied."""
    _set(experts, j, down_proj=experts.down_proj[j] * 0.4)
    return Slot("scaled", j)


def scaled_slightly(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
    """By 5 %, in down_proj only."""
    _set(experts, j, down_proj=experts.down_proj[j] * 1.05)
    return Slot("scaled", j)


def scaled_all(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
    """Every weight of the expert off by one factor."""
    _set(experts, j, **{name: tensor[j] * 1.7 for name, tensor in experts.tensors().items()})
    return Slot("scaled", j)


def units_reordered(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
    """The same expert, its units in another order."""
    order = torch.randperm(experts.num_units, generator=generator)
    for name, tensor in experts.tensors().items():
        if name == "down_proj":
            _set(experts, j, down_proj=tensor[j][:, order])
        elif name != "down_bias":
            _set(experts, j, **{name: tensor[j][order]})
    return Slot("identical", j)


def copied(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
    """Expert 0 in its place."""
    _set(experts, j, **{name: tensor[0] for name, tensor in experts.tensors().items()})
    return Slot("identical", 0)


def swapped(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
    """Gate for up."""
    for gate, up in (("gate_proj", "up_proj"), ("gate_bias", "up_bias")):
        if gate in experts.tensors():
            x, y = getattr(experts, gate)[j].clone(), getattr(experts, up)[j].clone()
            _set(experts, j, **{gate: y, up: x})
    return Slot("gate_up_swapped", j)


def interleaved(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
    """Read as halves, stored row by row in turn."""
    for gate, up in (("gate_proj", "up_proj"), ("gate_bias", "up_bias")):
        if gate in experts.tensors():
            x, y = getattr(experts, gate)[j], getattr(experts, up)[j]
            rows = torch.empty((2 * len(x), *x.shape[1:]), dtype=x.dtype)
            rows[::2], rows[1::2] = x, y
            _set(experts, j, **{gate: rows[: len(x)], up: rows[len(x) :]})
    return Slot("interleaving", j)


def joined(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
    """Read row by row in turn, stored as halves."""
    for gate, up in (("gate_proj", "up_proj"), ("gate_bias", "up_bias")):
        if gate in experts.tensors():
            rows = torch.cat([getattr(experts, gate)[j], getattr(experts, up)[j]])
            _set(experts, j, **{gate: rows[::2], up: rows[1::2]})
    return Slot("interleaving", j)


def transposed(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
    """All projections [in, out], read as [out, in]."""
    for name in ("gate_proj", "up_proj", "down_proj"):
        if name in experts.tensors():
            tensor = getattr(experts, name)[j]
            _set(experts, j, **{name: tensor.T.reshape(tensor.shape).clone()})
    return Slot("transposed", j)


def transposed_down(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
    """Only down_proj."""
    tensor = experts.down_proj[j]
    _set(experts, j, down_proj=tensor.T.reshape(tensor.shape).clone())
    return Slot("transposed", j)


def transposed_up(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
    """Only up_proj."""
    tensor = experts.up_proj[j]
    _set(experts, j, up_proj=tensor.T.reshape(tensor.shape).clone())
    return Slot("transposed", j)


def _transposed_together(experts: ExpertBank, j: int, alternate: bool) -> Slot:
    gate, up = experts.gate_proj[j], experts.up_proj[j]
    rows = torch.stack([gate, up], dim=1).flatten(0, 1) if alternate else torch.cat([gate, up])
    rows = rows.T.reshape(rows.shape).clone()
    gate, up = (rows[::2], rows[1::2]) if alternate else rows.chunk(2)
    _set(experts, j, gate_proj=gate, up_proj=up)
    return Slot("transposed", j)


def transposed_joined(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
    """gate_proj and up_proj as they are stored in one, halves joined."""
    return _transposed_together(experts, j, alternate=False)


def transposed_interleaved(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
    """gate_proj and up_proj as they are stored in one, rows in turn."""
    return _transposed_together(experts, j, alternate=True)


Plant = Callable[[ExpertBank, int, torch.Generator], Slot]

ANY: tuple[Plant, ...] = (
    changed,
    unrelated,
    zero,
    zero_down,
    not_finite,
    scaled,
    scaled_slightly,
    scaled_all,
    units_reordered,
    copied,
    transposed,
    transposed_down,
)
OF_GATED: tuple[Plant, ...] = (swapped, interleaved, joined, transposed_up, transposed_joined, transposed_interleaved)
_UNDER = (
    changed,
    scaled,
    scaled_slightly,
    scaled_all,
    units_reordered,
    copied,
)  # what another fault may come on top of
_KINDS = ("identical", "changed", "scaled", "gate_up_swapped", "interleaving", "transposed", "unrelated", "zero")
"""Of two at once, the later names the expert."""


def plants(family: str) -> tuple[Plant, ...]:
    """What can be done to an expert of the family."""
    return (*ANY, *OF_GATED) if family in GATED else ANY


def both(first: Plant, second: Plant) -> Plant:
    """One after the other, to the same expert."""

    def plant(experts: ExpertBank, j: int, generator: torch.Generator) -> Slot:
        slots = [first(experts, j, generator), second(experts, j, generator)]
        return Slot(max((slot.kind for slot in slots), key=_KINDS.index), slots[0].source)

    plant.__name__ = f"{first.__name__} + {second.__name__}"
    return plant


def pairs(family: str) -> list[Plant]:
    """Two things of different kinds at once, in both orders."""
    stored = [plant for plant in plants(family) if plant.__name__.startswith(("swap", "inter", "join", "trans"))]
    both_orders = [(x, y) for x in _UNDER for y in stored] + [(y, x) for x in _UNDER[:-1] for y in stored]
    both_orders += [
        (changed, scaled),
        (scaled, changed),
        (copied, changed),
        (copied, scaled),
        (copied, units_reordered),
    ]
    kinds = {plant: plant.__name__[:5].replace("inter", "rows").replace("joine", "rows") for plant in stored}
    both_orders += [(x, y) for x in stored for y in stored if kinds[x] != kinds[y]]
    return [both(x, y) for x, y in both_orders]


def planted(
    model: PreTrainedModel, things: dict[int, Plant], seed: int = 0
) -> tuple[PreTrainedModel, dict[str, Truth]]:
    """A copy of the model in whose layers, slot by slot, things were done to experts; and the truth by layer name."""
    model, truths, generator = copy.deepcopy(model), {}, torch.Generator().manual_seed(seed)
    for spec in routed(model):
        truth = [Slot("identical", j) for j in range(spec.num_experts)]

        def do(layer: MoeLayer, truth: Truth = truth) -> MoeLayer:
            for j, thing in things.items():
                truth[j] = thing(layer.experts, j, generator)
            return layer

        edit(model, spec, do)
        truths[spec.name] = truth
    return model, truths


@dataclass(frozen=True)
class Case:
    """One layer compared with itself after things were done to its experts, and the truth.

    Args:
        layer: the comparison.
        truth: of every slot.
        things: what was done to the expert in every slot; None of nothing.
    """

    layer: LayerComparison
    truth: Truth
    things: Sequence[Plant | None]

    @property
    def wrong(self) -> list[str]:
        """The slots that are not named right, in words."""
        named_slots = [(expert.kind, expert.source) for expert in self.layer.experts]
        return [
            f"{getattr(thing, '__name__', 'nothing')}: {is_named} instead of {should_be}"
            for thing, is_named, should_be in zip(self.things, named_slots, named(self.truth), strict=True)
            if is_named != should_be
        ]


def case(model: PreTrainedModel, things: dict[int, Plant], symmetry: str, top: str, seed: int = 0) -> Case:
    """The last layer of a model compared with a copy to whose experts things were done.

    Args:
        model: its last layer is taken.
        things: what is done to the expert in a slot.
        symmetry: when a random symmetry acts: "never", "before" it is done, "after", or both ("between").
        top: "nothing", or what comes on top of all: "bfloat16" (rounding, in the dtype that it has), "noise" of 1 %.
        seed: of all of it.
    """
    spec, tensors, generator = routed(model)[-1], model.state_dict(), torch.Generator().manual_seed(seed)
    a = spec.read(tensors)
    b, truth = _clone(a), [Slot("identical", j) for j in range(spec.num_experts)]
    done: list[Plant | None] = [things.get(j) for j in range(spec.num_experts)]

    def rewrite() -> list[int]:
        nonlocal b
        move = b.group.random_derangement(*b.symmetry_shape, generator=generator)
        b = _clone(act(move, b))
        return move.experts.index.tolist()

    order = rewrite() if symmetry in ("before", "between") else list(range(spec.num_experts))
    for j, thing in things.items():
        truth[j] = thing(b.experts, j, generator)
    truth = [replace(slot, source=None if slot.source is None else order[slot.source]) for slot in truth]
    if symmetry in ("after", "between"):
        order = rewrite()
        truth, done = [truth[j] for j in order], [done[j] for j in order]
    if top != "nothing":
        change = _rounded if top == "bfloat16" else lambda tensor: _noisy(tensor, 0.01, generator)
        b = b.with_tensors({name: change(tensor) for name, tensor in b.tensors().items()})
        then = "rounded" if top == "bfloat16" else "changed"
        truth = [replace(slot, kind=then) if slot.kind == "identical" else slot for slot in truth]
    written = [{**tensors, **spec.write(layer, tensors)} for layer in (a, b)]
    return Case(compare_layers(spec, written[0], spec, written[1])[0], truth, done)


def _clone(layer: MoeLayer) -> MoeLayer:
    return layer.with_tensors({name: tensor.clone() for name, tensor in layer.tensors().items()})


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.bfloat16().to(tensor)
