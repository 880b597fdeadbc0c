"""Known truth: what was done to experts of a live model, and what a comparison must say of each.

Nothing here uses the package's own words for faults: each is done to stored tensors, the way exports get it wrong.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_moe_lmc import scramble
from hf_moe_lmc.adapters import MoeLayerSpec, alignable_layers
from hf_moe_lmc.moe import ExpertBank, MoeLayer

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
    layer = spec.read(tensors)
    layer = layer.with_tensors({name: tensor.clone() for name, tensor in layer.tensors().items()})
    for name, tensor in spec.write(change(layer), tensors).items():
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


ANY = (
    changed,
    unrelated,
    zero,
    zero_down,
    not_finite,
    scaled,
    scaled_all,
    units_reordered,
    copied,
    transposed,
    transposed_down,
)
OF_GATED = (swapped, interleaved, joined, transposed_up)
Plant = Callable[[ExpertBank, int, torch.Generator], Slot]


def plants(family: str) -> tuple[Plant, ...]:
    """What can be done to an expert of the family."""
    return (*ANY, *OF_GATED) if family in GATED else ANY


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


def rewritten(
    model: PreTrainedModel, truths: dict[str, Truth], seed: int = 0
) -> tuple[PreTrainedModel, dict[str, Truth]]:
    """The model under a random symmetry, in place, and the truth then."""
    _, alignment = scramble(model, seed)
    orders = {name: layer.symmetry.experts.index.tolist() for name, layer in alignment.layers.items()}
    return model, {name: [truth[i] for i in orders[name]] for name, truth in truths.items()}


def symmetric_start(model: PreTrainedModel, seed: int = 0) -> tuple[PreTrainedModel, dict[str, list[int]]]:
    """A copy of the model under a random symmetry, and the expert of the model in every slot."""
    model, alignment = scramble(copy.deepcopy(model), seed)
    return model, {name: layer.symmetry.experts.index.tolist() for name, layer in alignment.layers.items()}


def on_top(model: PreTrainedModel, what: str, truths: dict[str, Truth], seed: int = 0) -> dict[str, Truth]:
    """Rounding to bfloat16 (in the dtype that it has), or noise of 1 % on every tensor; and the truth then."""
    generator = torch.Generator().manual_seed(seed)
    if what == "nothing":
        return truths
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.bfloat16().to(tensor) if what == "bfloat16" else _noisy(tensor, 0.01, generator))
    then = {"bfloat16": {"identical": "rounded"}, "noise": {"identical": "changed"}}[what]
    return {
        name: [replace(slot, kind=then.get(slot.kind, slot.kind)) for slot in truth] for name, truth in truths.items()
    }
