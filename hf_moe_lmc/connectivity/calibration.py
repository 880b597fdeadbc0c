"""Calibration: activation statistics of a live model, gathered by hooks in one pass over the calibration data."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import xxhash
from accelerate.utils import send_to_device
from torch import Tensor, nn

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.adapters.layouts import DenseMlp, ExpertLayout, FusedExperts
from hf_moe_lmc.alignment import SavedWeights, Weights
from hf_moe_lmc.checkpoints import tensor_bytes
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.merging import Activation, ExpertStatistics, LayerStatistics, token_weights
from hf_moe_lmc.moe import ExpertBank, MoeLayer

Batch = Mapping[str, Tensor]

MAX_TOKENS = 4096
CHECKED_TOKENS = 32
ROUNDING = 0.02  # of bfloat16, over a whole expert; an activation that is another differs by more


@dataclass(frozen=True)
class CalibrationData:
    """Batches that are never evaluated on: all calibrate repairs, half of them test "auto" and fit temperatures.

    Args:
        batches: for the model, the same in every process; none, or two and more.
        source: their origin, in flags of the command line; empty where that is not known.

    Raises:
        BadInputError: there is one batch only.
    """

    batches: Sequence[Batch] = field(default=(), repr=False)
    source: Mapping[str, str | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.batches) == 1:
            raise BadInputError("one batch of calibration data cannot be halved; give two or more, or none")

    @classmethod
    def of(cls, data: "CalibrationData | Iterable[Batch]") -> "CalibrationData":
        """Return the data, or make it of batches."""
        return data if isinstance(data, CalibrationData) else cls(list(data))

    def to(self, device: torch.device) -> "CalibrationData":
        """Return the data on a device."""
        return CalibrationData([send_to_device(batch, device) for batch in self.batches], self.source)

    @property
    def fitted(self) -> Sequence[Batch]:
        """The first, third, ... batch, on which repairs are calibrated when they are tested."""
        return self.batches[::2]

    @property
    def held_out(self) -> Sequence[Batch]:
        """The other batches, which test repairs and fit temperatures."""
        return self.batches[1::2]

    @property
    def digest(self) -> str | None:
        """XXH3 of 128 bits over names, dtypes, shapes and values; None without batches."""
        if not self.batches:
            return None
        digest = xxhash.xxh3_128()
        for batch in self.batches:
            for name in sorted(batch):
                digest.update(f"{name} {batch[name].dtype} {tuple(batch[name].shape)}\n".encode())
                digest.update(tensor_bytes(batch[name].cpu().contiguous()))
        return digest.hexdigest()


@dataclass
class _Seen:
    """Records of one layer, per batch: tokens, chosen experts and their weights, outputs."""

    tokens: list[Tensor] = field(default_factory=list)
    index: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    shared_tokens: list[Tensor] = field(default_factory=list)
    shared_outputs: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def gather_statistics(
    saved: SavedWeights,
    weights: Weights,
    specs: Sequence[MoeLayerSpec],
    batches: Sequence[Batch],
    max_tokens: int = MAX_TOKENS,
) -> dict[str, LayerStatistics]:
    """Statistics of the layers of `specs` in a model with `weights`, by layer name.

    At most `max_tokens` tokens of a layer are kept, the same number of every batch, evenly spaced. A layer is left out
    if the outputs of its experts, computed from its weights, are not those of the model's.

    Args:
        saved: the weights of the model that `weights` are loaded into.
        weights: under module names.
        specs: layers; those without a router are one expert that every token takes.
        batches: for the model, never the ones evaluated on.
        max_tokens: the bound of what is kept.
    """
    saved.load(weights)
    model, seen = saved.model.eval(), {spec.name: _Seen() for spec in specs}
    with _recording(model, specs, seen, -(-max_tokens // max(len(batches), 1))):
        for batch in batches:
            model(**batch)
    statistics = {}
    for spec in specs:
        if seen[spec.name].tokens and (own := _layer_statistics(model, spec, weights, seen[spec.name])):
            statistics[spec.name] = own
    return statistics


@contextmanager
def _recording(
    model: nn.Module, specs: Sequence[MoeLayerSpec], seen: Mapping[str, _Seen], per_batch: int
) -> Iterator[None]:
    def some(tensor: Tensor) -> Tensor:
        rows = tensor.reshape(-1, tensor.shape[-1])
        return rows[torch.linspace(0, len(rows) - 1, min(per_batch, len(rows)), device=rows.device).long()]

    def routed(record: _Seen) -> Callable[[nn.Module, tuple[object, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[object, ...], output: Tensor) -> None:
            tokens, *routing = (arg for arg in args if isinstance(arg, Tensor))
            if len(routing) == 2 and routing[0].shape == routing[1].shape and not routing[0].is_floating_point():
                index, chances = routing
            elif not routing:
                count = tokens.shape[:-1].numel()
                index, chances = tokens.new_zeros(count, 1).long(), tokens.new_ones(count, 1)
            else:
                return
            record.tokens.append(some(tokens))
            record.index.append(some(index))
            record.weights.append(some(chances))
            record.outputs.append(some(output))

        return hook

    def shared(record: _Seen) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            record.shared_tokens.append(some(args[0]))
            record.shared_outputs.append(some(output))

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


def _layer_statistics(model: nn.Module, spec: MoeLayerSpec, weights: Weights, seen: _Seen) -> LayerStatistics | None:
    activation = _activation(model, spec.experts)
    if activation is None:
        return None
    layer = spec.read({name: weights[name] for name in spec.tensor_names}).to(torch.float32)
    tokens, index, chances = torch.cat(seen.tokens).float(), torch.cat(seen.index), torch.cat(seen.weights).float()
    if int(index.max()) >= layer.experts.num_experts:
        return None  # zero experts, which have no weights
    shares = chances.new_zeros(len(tokens), layer.experts.num_experts).scatter_(1, index, chances)
    routed = torch.zeros_like(shares, dtype=torch.bool).scatter_(1, index, True)
    experts = ExpertStatistics(tokens, token_weights(routed), activation)
    if not _outputs_agree(experts, layer.experts, shares, torch.cat(seen.outputs)):
        return None
    return LayerStatistics(experts, _shared(model, spec, layer, seen), _sees(layer, tokens, index, chances))


def _shared(model: nn.Module, spec: MoeLayerSpec, layer: MoeLayer, seen: _Seen) -> ExpertStatistics | None:
    if spec.shared_experts is None or layer.shared_experts is None or not seen.shared_tokens:
        return None
    activation = _activation(model, spec.shared_experts)
    if activation is None:
        return None
    tokens = torch.cat(seen.shared_tokens).float()
    ones = tokens.new_ones(len(tokens), layer.shared_experts.num_experts)
    statistics = ExpertStatistics(tokens, ones / len(tokens), activation)
    return (
        statistics if _outputs_agree(statistics, layer.shared_experts, ones, torch.cat(seen.shared_outputs)) else None
    )


def _activation(model: nn.Module, layout: ExpertLayout) -> Activation | None:
    """The function between the projections of a module; None where it is not known."""
    module = model.get_submodule(layout.name)
    act = next(
        (own for name in ("act_fn", "activation_fn", "act") if callable(own := getattr(module, name, None))), None
    )
    if isinstance(layout, FusedExperts) and layout.is_gated:
        apply = getattr(module, "_apply_gate", None)
        return None if apply is None else lambda gate, up: apply(layout.join(gate, up))
    if act is None or not isinstance(layout, FusedExperts | DenseMlp):
        return None
    return lambda gate, up: act(up) if gate is None else act(gate) * up


def _outputs_agree(statistics: ExpertStatistics, bank: ExpertBank, shares: Tensor, outputs: Tensor) -> bool:
    """Whether the outputs of `bank`, weighed by `shares`, are those of the module for the first tokens."""
    few = ExpertStatistics(
        statistics.tokens[:CHECKED_TOKENS], statistics.weights[:CHECKED_TOKENS], statistics.activation
    )
    wanted = outputs[:CHECKED_TOKENS].to(bank.up_proj)
    weighed = sum(shares[:CHECKED_TOKENS, e, None].to(wanted) * few.outputs(bank, e) for e in range(bank.num_experts))
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
