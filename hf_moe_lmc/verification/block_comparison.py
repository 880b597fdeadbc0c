"""Two models' versions of one Mixture-of-Experts block, fed the same inputs."""

from copy import deepcopy
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from hf_moe_lmc.adapters import MoeLayerSpec, experts_per_token, router_of

from .difference import relative_difference
from .routing import routing_agreement, selected_experts


class BlockComparison:
    """While it is open, each call of the block in `before` is repeated, with the same arguments, in `after`.

    So differences in one layer are not those of the layers below it.

    Args:
        spec: the layer.
        before, after: the models.
    """

    def __init__(self, spec: MoeLayerSpec, before: nn.Module, after: nn.Module) -> None:
        self.spec, self.top_k = spec, experts_per_token(before, spec)
        self.difference = 0.0
        self._blocks = before.get_submodule(spec.name), after.get_submodule(spec.name)
        self._routers = router_of(before, spec), router_of(after, spec)
        self._chosen: tuple[list[Tensor], list[Tensor]] = [], []
        self._answer: Any = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "BlockComparison":
        block = self._blocks[0]
        self._handles = [
            block.register_forward_pre_hook(self._ask_after, with_kwargs=True),
            block.register_forward_hook(self._compare),
            self._routers[0].register_forward_hook(lambda module, args, output: self._note(0, output)),
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def _ask_after(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Only this call of its router counts, and what it writes into caches must not reach `before`.
        handle = self._routers[1].register_forward_hook(lambda module, args, output: self._note(1, output))
        try:
            self._answer = self._blocks[1](*deepcopy(args), **deepcopy(kwargs))
        finally:
            handle.remove()

    def _compare(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        expected, found = (x if isinstance(x, Tensor) else x[0] for x in (output, self._answer))
        self.difference = max(self.difference, relative_difference(expected, found))
        self._answer = None

    def _note(self, side: int, output: object) -> None:
        self._chosen[side].append(selected_experts(output, self.spec.num_experts, self.top_k).cpu())

    @property
    def was_run(self) -> bool:
        """Whether any input reached the layer."""
        return bool(self._chosen[0])

    @property
    def agreement(self) -> float:
        """`routing_agreement` over all calls."""
        return routing_agreement(torch.cat(self._chosen[0]), torch.cat(self._chosen[1]))

    @property
    def experts_reached(self) -> int:
        """How many experts were chosen at least once in `before`."""
        chosen = torch.cat(self._chosen[0]).unique()
        return int((chosen < self.spec.num_experts).sum())
