"""Two models' versions of one block, Mixture of Experts or dense, fed the same inputs: outputs and chosen experts."""

from copy import deepcopy
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hf_moe_lmc.adapters import MoeLayerSpec, experts_per_token, router_of
from hf_moe_lmc.matching import solve_assignment


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
        self._output: Any = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "BlockComparison":
        block = self._blocks[0]
        self._handles = [
            block.register_forward_pre_hook(self._run_after, with_kwargs=True),
            block.register_forward_hook(self._compare),
            *self._listen(0),
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def _run_after(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Only this call of its router counts, and what it writes into caches must not reach `before`.
        handles = self._listen(1)
        try:
            self._output = self._blocks[1](*deepcopy(args), **deepcopy(kwargs))
        finally:
            for handle in handles:
                handle.remove()

    def _compare(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        expected, actual = (x if isinstance(x, Tensor) else x[0] for x in (output, self._output))
        self.difference = max(self.difference, relative_difference(expected, actual))
        self._output, self.was_run = None, True

    def _listen(self, side: int) -> list[torch.utils.hooks.RemovableHandle]:
        """Record the experts that the router of one side chooses, if there is one."""
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
        """Number of experts that were chosen at least once in `before`; None as `agreement`."""
        if self._num_experts is None:
            return None
        chosen = torch.cat(self._chosen[0]).unique()
        return int((chosen < self._num_experts).sum())


def row_differences(expected: Float[Tensor, "*rows n"], actual: Float[Tensor, "*rows n"]) -> Float[Tensor, " m"]:
    """`max_n |actual - expected| / max |expected|` of all m rows; infinite where one is NaN, or infinite alone."""
    worst = torch.where(expected == actual, 0.0, actual - expected).abs().reshape(-1, expected.shape[-1]).amax(dim=1)
    largest = torch.where(expected.isfinite(), expected, 0.0).abs().max()
    return torch.where(worst == 0, 0.0, torch.where(worst.isfinite(), worst / largest, torch.inf))


def relative_difference(expected: Float[Tensor, "*shape"], actual: Float[Tensor, "*shape"]) -> float:
    """`max |actual - expected| / max |expected|`; see `row_differences`."""
    return float(row_differences(expected.flatten(), actual.flatten()))


def selected_experts(output: object, num_experts: int, top_k: int) -> Int[Tensor, "T K"]:
    """The experts that a router chose, read from the output of its module: their numbers, or the largest scores."""
    tensors = [tensor for tensor in _tensors(output) if tensor.ndim >= 2]
    for tensor in tensors:
        if not tensor.is_floating_point() and tensor.ndim == 2 and tensor.shape[1] == top_k:
            return tensor
    # DBRX, JetMoe, Llama 4 and Switch Transformers return the scores of all experts, and return them last.
    scores = next(tensor for tensor in reversed(tensors) if tensor.shape[-1] == num_experts)
    return scores.flatten(0, -2).topk(top_k, dim=-1).indices


def routing_agreement(before: Int[Tensor, "T K"], after: Int[Tensor, "T K"]) -> float:
    """`max_sigma |{(t, e): e in before_t, sigma(e) in after_t}| / (T K)`, over all renumberings sigma of the experts.

    1 exactly where one renumbering explains all choices; a linear assignment on how often each pair of experts is
    chosen by the same token.
    """
    size = int(torch.maximum(before.max(), after.max())) + 1
    together = _chosen(before, size).T @ _chosen(after, size)
    return solve_assignment(together).objective / before.numel()


def _chosen(index: Int[Tensor, "T K"], size: int) -> Float[Tensor, "T E"]:
    return torch.zeros(len(index), size, dtype=torch.float64).scatter_(1, index.long().cpu(), 1.0)


def _tensors(output: object) -> list[Tensor]:
    parts = output if isinstance(output, tuple) else (output,)
    return [part for part in parts if isinstance(part, Tensor)]
