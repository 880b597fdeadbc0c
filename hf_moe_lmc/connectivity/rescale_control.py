"""The control for variance collapse: a path whose experts keep their output size, without any alignment."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.merging import rescale_outputs

from .live_weights import borrow
from .path import Path


def rescaled_path(
    model: nn.Module, path: Path, specs: Sequence[MoeLayerSpec], calibration: Iterable[Mapping[str, Tensor]]
) -> Path:
    """`path` with the output of every expert rescaled to the interpolated size of its ends' outputs.

    With n_t(e) the norm of expert e's outputs over all calibration tokens, its output at t is multiplied by
    `((1 - t) n_0(e) + t n_1(e)) / n_t(e)`. All layers are measured before any is rescaled.

    Args:
        model: where the measuring takes place; ends with the weights that it had.
        path: the path to correct.
        specs: its Mixture-of-Experts layers, of experts that are called with `(tokens, indices, weights)`.
        calibration: batches for `model`, never the ones evaluated on.
    """
    batches = list(calibration)

    def sizes_at(t: float) -> dict[str, Tensor]:
        with borrow(model) as weights:
            weights.load(path(t))
            return output_sizes(model, specs, batches)

    start, end = sizes_at(0.0), sizes_at(1.0)

    def rescaled(t: float) -> Mapping[str, Tensor]:
        tensors, found = dict(path(t)), sizes_at(t)
        factors = {name: _factor(start[name], end[name], found[name], t) for name in found}
        for spec in specs:
            shared = factors[spec.shared_experts.name] if spec.shared_experts else None
            tensors |= spec.write(rescale_outputs(spec.read(tensors), factors[spec.experts.name], shared), tensors)
        return tensors

    return rescaled


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
