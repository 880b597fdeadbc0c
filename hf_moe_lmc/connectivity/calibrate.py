"""Calibration statistics of a live model, gathered by hooks in one pass over the calibration data."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.adapters.layouts import DenseMlp, ExpertLayout, FusedExperts
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.merging import Activation, ExpertCalibration, LayerCalibration, token_weights
from hf_moe_lmc.moe import ExpertBank, MoeLayer

from .live_weights import BorrowedWeights
from .path import linear_path

Batch = Mapping[str, Tensor]

MAX_TOKENS = 4096
CHECKED_TOKENS = 32
ROUNDING = 0.02  # of bfloat16, over a whole expert; an activation that is another differs by more


@dataclass
class _Seen:
    """What was recorded of one layer: per batch, tokens, chosen experts and their weights, answers."""

    tokens: list[Tensor] = field(default_factory=list)
    index: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    answers: list[Tensor] = field(default_factory=list)
    shared_tokens: list[Tensor] = field(default_factory=list)
    shared_answers: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def calibrate(
    weights: BorrowedWeights,
    tensors: Mapping[str, Tensor],
    specs: Sequence[MoeLayerSpec],
    batches: Sequence[Mapping[str, Tensor]],
    max_tokens: int = MAX_TOKENS,
) -> dict[str, LayerCalibration]:
    """What reaches the layers of `specs` in a model with the weights `tensors`, by layer name.

    At most `max_tokens` tokens of a layer are kept, the same number of every batch, evenly spaced. A layer is left out
    if its experts, computed from its weights, do not answer as the model's do.

    Args:
        weights: of the model that `tensors` are loaded into.
        tensors: under module names.
        specs: layers; those without a router are one expert that every token takes.
        batches: for the model, never the ones evaluated on.
        max_tokens: the bound of what is kept.
    """
    weights.load(tensors)
    model, seen = weights.model.eval(), {spec.name: _Seen() for spec in specs}
    with _recording(model, specs, seen, -(-max_tokens // max(len(batches), 1))):
        for batch in batches:
            model(**batch)
    found = {}
    for spec in specs:
        if seen[spec.name].tokens and (known := _calibration(model, spec, tensors, seen[spec.name])):
            found[spec.name] = known
    return found


def calibrated_line(
    weights: BorrowedWeights,
    other: Mapping[str, Tensor],
    specs: Sequence[MoeLayerSpec],
    batches: Sequence[Mapping[str, Tensor]],
) -> Callable[[float], Mapping[str, LayerCalibration]]:
    """T -> `calibrate` at the point t of the line from `weights` to `other`; kept for one point at a time."""
    line = linear_path(weights, other)
    return lru_cache(maxsize=1)(lambda t: calibrate(weights, line(t), specs, batches))


def halved(batches: Sequence[Batch]) -> tuple[Sequence[Batch], Sequence[Batch]]:
    """Batches that calibrate repairs, and held-out ones that fit temperatures and choose repairs; in turns.

    Raises:
        BadInputError: there is one batch only.
    """
    if len(batches) == 1:
        raise BadInputError("one batch of calibration data cannot be halved; give two or more, or none")
    return batches[::2], batches[1::2]


@contextmanager
def _recording(
    model: nn.Module, specs: Sequence[MoeLayerSpec], seen: Mapping[str, _Seen], per_batch: int
) -> Iterator[None]:
    def some(tensor: Tensor) -> Tensor:
        rows = tensor.reshape(-1, tensor.shape[-1])
        return rows[torch.linspace(0, len(rows) - 1, min(per_batch, len(rows)), device=rows.device).long()]

    def routed(found: _Seen) -> Callable[[nn.Module, tuple[object, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[object, ...], output: Tensor) -> None:
            tokens, *routing = (arg for arg in args if isinstance(arg, Tensor))
            if len(routing) == 2 and routing[0].shape == routing[1].shape and not routing[0].is_floating_point():
                index, chances = routing
            elif not routing:
                count = tokens.shape[:-1].numel()
                index, chances = tokens.new_zeros(count, 1).long(), tokens.new_ones(count, 1)
            else:
                return
            found.tokens.append(some(tokens))
            found.index.append(some(index))
            found.weights.append(some(chances))
            found.answers.append(some(output))

        return hook

    def shared(found: _Seen) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            found.shared_tokens.append(some(args[0]))
            found.shared_answers.append(some(output))

        return hook

    handles = []
    for spec in specs:
        experts = model.get_submodule(spec.experts.name)
        handles.append(experts.register_forward_hook(routed(seen[spec.name])))
        if spec.shared_experts:
            module = model.get_submodule(spec.shared_experts.name)
            handles.append(module.register_forward_hook(shared(seen[spec.name])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _calibration(
    model: nn.Module, spec: MoeLayerSpec, tensors: Mapping[str, Tensor], seen: _Seen
) -> LayerCalibration | None:
    layer, activation = spec.read(tensors).to(torch.float32), _activation(model, spec.experts)
    if activation is None:
        return None
    tokens, index, chances = torch.cat(seen.tokens).float(), torch.cat(seen.index), torch.cat(seen.weights).float()
    if int(index.max()) >= layer.experts.num_experts:
        return None  # zero experts, which have no weights
    shares = chances.new_zeros(len(tokens), layer.experts.num_experts).scatter_(1, index, chances)
    routed = torch.zeros_like(shares, dtype=torch.bool).scatter_(1, index, True)
    experts = ExpertCalibration(tokens, token_weights(routed), activation)
    if not _answers_alike(experts, layer.experts, shares, torch.cat(seen.answers)):
        return None
    return LayerCalibration(experts, _shared(model, spec, layer, seen), _sees(layer, tokens, index, chances))


def _shared(model: nn.Module, spec: MoeLayerSpec, layer: MoeLayer, seen: _Seen) -> ExpertCalibration | None:
    if spec.shared_experts is None or layer.shared_experts is None or not seen.shared_tokens:
        return None
    activation = _activation(model, spec.shared_experts)
    if activation is None:
        return None
    tokens = torch.cat(seen.shared_tokens).float()
    ones = tokens.new_ones(len(tokens), layer.shared_experts.num_experts)
    found = ExpertCalibration(tokens, ones / len(tokens), activation)
    return found if _answers_alike(found, layer.shared_experts, ones, torch.cat(seen.shared_answers)) else None


def _activation(model: nn.Module, layout: ExpertLayout) -> Activation | None:
    """How the units of a module answer; None where that is not known."""
    module = model.get_submodule(layout.name)
    act = next(
        (found for name in ("act_fn", "activation_fn", "act") if callable(found := getattr(module, name, None))), None
    )
    if isinstance(layout, FusedExperts) and layout.is_gated:
        apply = getattr(module, "_apply_gate", None)
        return None if apply is None else lambda gate, up: apply(layout.join(gate, up))
    if act is None or not isinstance(layout, FusedExperts | DenseMlp):
        return None
    return lambda gate, up: act(up) if gate is None else act(gate) * up


def _answers_alike(found: ExpertCalibration, bank: ExpertBank, shares: Tensor, answers: Tensor) -> bool:
    """Whether the experts of `bank`, weighed by `shares`, answer the first tokens as the module did."""
    few = ExpertCalibration(found.tokens[:CHECKED_TOKENS], found.weights[:CHECKED_TOKENS], found.activation)
    wanted = answers[:CHECKED_TOKENS].to(bank.up_proj)
    weighed = sum(shares[:CHECKED_TOKENS, e, None].to(wanted) * few.answers(bank, e) for e in range(bank.num_experts))
    return bool((weighed - wanted).norm() <= ROUNDING * wanted.norm())


def _sees(layer: MoeLayer, tokens: Tensor, index: Tensor, chances: Tensor) -> bool:
    """Whether the routing weights are proportional to the softmax or sigmoid of the router's scores of `tokens`."""
    if layer.router is None:
        return False
    weight, bias, scale = layer.router.weight, layer.router.bias, layer.router.per_expert_scale
    scores = tokens.to(weight) @ weight.T + (0 if bias is None else bias)
    sizes = scores.softmax(dim=1) if layer.group.router_translation else scores.sigmoid()
    sizes = (sizes if scale is None else sizes * scale).gather(1, index.to(weight.device))
    alike = torch.cosine_similarity(sizes, chances.to(sizes), dim=1)
    return bool((alike > 1 - ROUNDING).all())
