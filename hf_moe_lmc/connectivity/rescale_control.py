"""Output rescale: a path whose experts keep their output size.

A repair of aligned paths, and, without any alignment, the control for variance collapse.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.adapters.layouts import FusedExperts
from hf_moe_lmc.merging import rescale_outputs
from hf_moe_lmc.moe import MoeLayer

from .live_weights import BorrowedWeights
from .path import Layerwise, Path


def rescaled_path(
    weights: BorrowedWeights, path: Path, specs: Sequence[MoeLayerSpec], calibration: Iterable[Mapping[str, Tensor]]
) -> Path:
    """`path` with the output of every expert rescaled to the interpolated size of its ends' outputs.

    With n_t(e) the norm of expert e's outputs over all calibration tokens, its output at t is multiplied by
    `((1 - t) n_0(e) + t n_1(e)) / n_t(e)`. All layers are measured before any is rescaled.

    Args:
        weights: of the model where the measuring takes place.
        path: the path to correct.
        specs: its Mixture-of-Experts layers, of experts that are called with `(tokens, indices, weights)`.
        calibration: batches for `model`, never the ones evaluated on.
    """
    batches = list(calibration)

    @cache
    def sizes_at(t: float) -> dict[str, Tensor]:
        weights.load(path(t))
        return output_sizes(weights.model, specs, batches)

    def rescaled(t: float) -> Mapping[str, Tensor]:
        tensors, found, start, end = path(t), sizes_at(t), sizes_at(0.0), sizes_at(1.0)
        factors = {name: _factor(start[name], end[name], found[name], t) for name in found}

        def rewritten(spec: MoeLayerSpec) -> MoeLayer:
            shared = factors[spec.shared_experts.name] if spec.shared_experts else None
            return rescale_outputs(spec.read(tensors), factors[spec.experts.name], shared)

        return Layerwise(tensors, specs, rewritten)

    return rescaled


def can_rescale(spec: MoeLayerSpec) -> bool:
    """Whether the experts of a layer can be asked for their outputs one by one."""
    return isinstance(spec.experts, FusedExperts)


def _factor(start: Tensor, end: Tensor, found: Tensor, t: float) -> Tensor:
    # An expert that answers nothing at all has no size to restore.
    return torch.where(found > 0, torch.lerp(start, end, t) / found, torch.ones_like(found))


@torch.no_grad()
def output_sizes(
    model: nn.Module, specs: Sequence[MoeLayerSpec], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The Frobenius norm of every expert's output over all tokens of `batches`, routed to it or not; summed in float64.

    Returns:
        module name of the routed experts -> `[E]`, and of the shared experts -> `[1]`.
    """
    squares: dict[str, Tensor] = {}

    def add(name: str, outputs: list[Tensor]) -> None:
        found = torch.stack([output.double().square().sum() for output in outputs])
        squares[name] = squares[name] + found if name in squares else found

    def routed(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(experts: nn.Module, args: tuple[Tensor, ...]) -> None:
            tokens, num_experts = args[0], experts.get_parameter("down_proj").shape[0]
            always = tokens.new_ones(len(tokens), 1)
            # forward, not a call: a call would run this hook again.
            add(name, [experts.forward(tokens, always.long() * e, always) for e in range(num_experts)])

        return hook

    def shared(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, args, output: add(name, [output])

    handles = []
    for spec in specs:
        handles.append(model.get_submodule(spec.experts.name).register_forward_pre_hook(routed(spec.experts.name)))
        if spec.shared_experts:
            module = model.get_submodule(spec.shared_experts.name)
            handles.append(module.register_forward_hook(shared(spec.shared_experts.name)))
    try:
        model.eval()
        for batch in batches:
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total.sqrt().float() for name, total in squares.items()}
