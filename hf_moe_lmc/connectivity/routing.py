"""What happens to the routing along a path: which experts the tokens take, layer by layer."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Int
from torch import Tensor, nn

from hf_moe_lmc.adapters import MoeLayerSpec


@dataclass(frozen=True)
class LayerChoices:
    """The experts that one layer chose for the recorded tokens.

    Args:
        num_experts: E.
        experts: `[N, K]`, the chosen experts of every token.
        last: `[N]`, the one of them with the least routing weight.
    """

    num_experts: int
    experts: Int[Tensor, "N K"]
    last: Int[Tensor, " N"]


Choices = Mapping[str, LayerChoices]
"""Layer name -> what the layer chose."""


@dataclass(frozen=True)
class Routing:
    """Routing along a path, every figure `[L][T]`: one row per layer, one entry per point.

    Args:
        t: the points.
        layers: names of the layers.
        agreement_with_reference, agreement_with_other: share of the choices that the end at t = 0, or at t = 1, makes
            for the same token too; by chance K / E.
        boundary_swaps: share of tokens that lose exactly the reference's least weighted expert, its k-th, to another.
        load_entropy: entropy of the experts' loads over log E; 1 is balanced.
        dead_experts: number of experts that no token takes.
    """

    t: tuple[float, ...]
    layers: tuple[str, ...]
    agreement_with_reference: tuple[tuple[float, ...], ...]
    agreement_with_other: tuple[tuple[float, ...], ...]
    boundary_swaps: tuple[tuple[float, ...], ...]
    load_entropy: tuple[tuple[float, ...], ...]
    dead_experts: tuple[tuple[float, ...], ...]


class RoutingRecorder:
    """Records the choices of the layers of `specs`, one `Choices` per use of `record`, for the same first tokens.

    Layers without a router, or whose experts are not called with `(tokens, indices, weights)`, are left out.

    Args:
        model: where the layers are.
        specs: the layers.
        accelerator: the processes; all of them get the choices of all.
        max_tokens: how many tokens are recorded, rounded up to whole batches.
    """

    def __init__(self, model: nn.Module, specs: Sequence[MoeLayerSpec], accelerator: Accelerator, max_tokens: int):
        self._model, self._specs = model, [spec for spec in specs if spec.router]
        self._accelerator, self._max_tokens = accelerator, max_tokens
        self.choices: list[Choices] = []

    @contextmanager
    def record(self) -> Iterator[None]:
        """Within, the choices of the model's forward passes are recorded."""
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        batch_size = [1]

        def see_batch(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            batch_size[0] = next(len(x) for x in (*args, *kwargs.values()) if isinstance(x, Tensor))

        def see_choice(name: str, args: tuple[object, ...]) -> None:
            index, weights = args[1:3] if len(args) > 2 else (None, None)
            kept = found.setdefault(name, [])
            if not isinstance(index, Tensor) or not isinstance(weights, Tensor) or index.is_floating_point():
                return
            if index.shape != weights.shape:
                return  # a mask of tokens and experts (Switch Transformers)
            if sum(len(experts) for experts, _ in kept) < self._max_tokens:
                last = index.gather(1, weights.argmin(dim=1, keepdim=True))
                both = torch.cat([index, last], dim=1).reshape(batch_size[0], -1, index.shape[1] + 1)
                # Processes may hold sequences of unequal length.
                both = self._accelerator.pad_across_processes(both, dim=1, pad_index=-1)
                both = self._accelerator.gather_for_metrics(both).flatten(0, 1).cpu()
                both = both[both[:, 0] >= 0]
                kept.append((both[:, :-1], both[:, -1]))

        handles = [self._model.register_forward_pre_hook(see_batch, with_kwargs=True)]
        for spec in self._specs:
            experts = self._model.get_submodule(spec.experts.name)
            handles.append(
                experts.register_forward_pre_hook(lambda module, args, name=spec.name: see_choice(name, args))
            )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        sizes = {spec.name: spec.router.num_experts for spec in self._specs if spec.router}
        self.choices.append(
            {
                name: LayerChoices(sizes[name], *(torch.cat(tensors) for tensors in zip(*kept, strict=True)))
                for name, kept in found.items()
                if kept
            }
        )


def routing_along(t: Sequence[float], choices: Sequence[Choices]) -> Routing:
    """What the choices at the points `t` of a path, the same tokens at each, say about its routing."""
    layers = tuple(choices[0])
    first, last = choices[0], choices[-1]

    def table(figure: str) -> tuple[tuple[float, ...], ...]:
        return tuple(
            tuple(_figures(point[layer], first[layer], last[layer])[figure] for point in choices) for layer in layers
        )

    return Routing(tuple(t), layers, *(table(figure) for figure in _FIGURES))


_FIGURES = (
    "agreement_with_reference",
    "agreement_with_other",
    "boundary_swaps",
    "load_entropy",
    "dead_experts",
)


def _figures(at: LayerChoices, reference: LayerChoices, other: LayerChoices) -> dict[str, float]:
    chosen, wanted = _members(at), _members(reference)
    taken = max(int(chosen.sum()), 1)
    lost = wanted & ~chosen
    last = (reference.last < at.num_experts) & lost.gather(1, reference.last.clamp(max=at.num_experts - 1)[:, None])[
        :, 0
    ]
    swapped = (lost.sum(dim=1) == 1) & last
    load = chosen.sum(dim=0).double() / taken
    return {
        "agreement_with_reference": int((chosen & wanted).sum()) / taken,
        "agreement_with_other": int((chosen & _members(other)).sum()) / taken,
        "boundary_swaps": float(swapped.double().mean()),
        "load_entropy": float(torch.special.entr(load).sum()) / math.log(at.num_experts),
        "dead_experts": float((load == 0).sum()),
    }


def _members(choices: LayerChoices) -> Tensor:
    """`[N, E]`, whether the token takes the expert; choices beyond the E routed experts (zero experts) are left out."""
    members = torch.zeros(len(choices.experts), choices.num_experts + 1, dtype=torch.bool)
    return members.scatter_(1, choices.experts.clamp(max=choices.num_experts), True)[:, :-1]
