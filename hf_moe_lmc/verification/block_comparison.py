"""Two models' versions of one block, Mixture of Experts or dense, fed the same inputs."""

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

    Attributes:
        difference: `relative_difference` of the outputs, the worst of all calls so far.
        was_run: whether any input reached the layer.
    """

    def __init__(self, spec: MoeLayerSpec, before: nn.Module, after: nn.Module) -> None:
        self.spec, self.top_k = spec, experts_per_token(before, spec)
        self.difference, self.was_run = 0.0, False
        # The module that uses the parts of a block is compared in its stead.
        name = spec.name.rpartition(".")[0] if spec.used_in_parts else spec.name
        self._blocks = before.get_submodule(name), after.get_submodule(name)
        # No module returns the experts that product keys choose.
        watched = None if spec.group.product_keys else spec.router
        self._num_experts = watched.num_experts if watched else None
        self._routers = router_of(before, spec), router_of(after, spec)
        self._chosen: tuple[list[Tensor], list[Tensor]] = [], []
        self._answer: Any = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "BlockComparison":
        block = self._blocks[0]
        self._handles = [
            block.register_forward_pre_hook(self._ask_after, with_kwargs=True),
            block.register_forward_hook(self._compare),
            *self._listen(0),
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def _ask_after(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Only this call of its router counts, and what it writes into caches must not reach `before`.
        handles = self._listen(1)
        try:
            self._answer = self._blocks[1](*deepcopy(args), **deepcopy(kwargs))
        finally:
            for handle in handles:
                handle.remove()

    def _compare(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        expected, found = (x if isinstance(x, Tensor) else x[0] for x in (output, self._answer))
        self.difference = max(self.difference, relative_difference(expected, found))
        self._answer, self.was_run = None, True

    def _listen(self, side: int) -> list[torch.utils.hooks.RemovableHandle]:
        """Note what the router of one side chooses, if there is one."""
        router, num_experts = self._routers[side], self._num_experts
        if router is None or num_experts is None:
            return []

        def note(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
            self._chosen[side].append(selected_experts(output, num_experts, self.top_k).cpu())

        return [router.register_forward_hook(note)]

    @property
    def agreement(self) -> float | None:
        """`routing_agreement` over all calls; None without router, and with product keys."""
        if self._num_experts is None:
            return None
        return routing_agreement(torch.cat(self._chosen[0]), torch.cat(self._chosen[1]))

    @property
    def experts_reached(self) -> int | None:
        """How many experts were chosen at least once in `before`; None as `agreement`."""
        if self._num_experts is None:
            return None
        chosen = torch.cat(self._chosen[0]).unique()
        return int((chosen < self._num_experts).sum())
