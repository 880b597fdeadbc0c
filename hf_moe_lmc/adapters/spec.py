"""The place of one Mixture-of-Experts layer in a model, read as a `MoeLayer` and written back."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.moe import MoeLayer, Router, SymmetryGroup

from .layouts import ExpertLayout, ListedExperts


@dataclass(frozen=True)
class RouterSpec:
    """A router: the names of its tensors, whose first E rows or entries belong to routed experts; others may follow.

    Args:
        tensors: (field of `Router`, module name of the tensor).
        num_experts: E.
        product_keys: whether `weight` holds E rows of each of two keys; both belong to one row of `Router.weight`.
    """

    tensors: tuple[tuple[str, str], ...]
    num_experts: int
    product_keys: bool = False

    def read(self, tensors: Mapping[str, Tensor]) -> Router:
        """The router out of tensors under module names."""
        rows = self._rows(tensors)
        if self.product_keys:
            rows["weight"] = torch.cat(rows["weight"].chunk(2), dim=1)
        table = next((tensors[name] for field, name in self.tensors if field == "expert_table"), None)
        return Router(**{field: tensor[: self.num_experts] for field, tensor in rows.items()}, expert_table=table)

    def read_further(self, tensors: Mapping[str, Tensor]) -> Router | None:
        """The rows that follow those of the routed experts, if there are any."""
        rows = {field: tensor[self.num_experts :] for field, tensor in self._rows(tensors).items()}
        further = {} if self.product_keys else {field: tensor for field, tensor in rows.items() if len(tensor)}
        return Router(**further) if further else None

    def write(self, router: Router, further: Router | None) -> dict[str, Tensor]:
        """The inverse of `read` and `read_further`, but for axes of length 1."""
        written = {field: getattr(router, field) for field, _ in self.tensors}
        if self.product_keys:
            written["weight"] = torch.cat(written["weight"].chunk(2, dim=1))
        for field, rows in (further.tensors() if further else {}).items():
            written[field] = torch.cat([written[field], rows])
        return {name: written[field] for field, name in self.tensors}

    def _rows(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Field of `Router` -> its tensor, of all rows; Ernie stores its selection biases as [1, E]."""
        fields = {field: tensors[name] for field, name in self.tensors if field != "expert_table"}
        return {field: tensor if field == "weight" else tensor.flatten() for field, tensor in fields.items()}


@dataclass(frozen=True)
class MoeLayerSpec:
    """One layer: its place in the module tree, how to read and write it, and its symmetries.

    Args:
        name: module name of the block, such as `model.layers.3.mlp`.
        router: None for a dense MLP, which is one expert.
        experts, shared_experts: its experts.
        group: its symmetries.
        kept_rows: (module name of a tensor of experts, number of its last rows, which nothing reads and are kept).
        used_in_parts: whether the block is never called as a whole, but its parts by the module above it.
    """

    name: str
    router: RouterSpec | None
    experts: ExpertLayout
    shared_experts: ExpertLayout | None
    group: SymmetryGroup
    kept_rows: tuple[tuple[str, int], ...] = ()
    used_in_parts: bool = False

    @property
    def num_experts(self) -> int:
        """E; 1 for a dense MLP."""
        return self.router.num_experts if self.router else 1

    @property
    def parts(self) -> tuple[ExpertLayout, ...]:
        """The layouts of the routed and of the shared experts."""
        return (self.experts, self.shared_experts) if self.shared_experts else (self.experts,)

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Module names of all tensors that `read` reads and `write` writes: enough to stream a checkpoint by layer."""
        router = (name for _, name in self.router.tensors) if self.router else ()
        return (*router, *(name for part in self.parts for name in part.tensor_names))

    @property
    def interchanged(self) -> tuple[tuple[str, ...], ...]:
        """Module names of tensors that a symmetry puts in each other's places, as of experts that are not stacked."""
        return self.experts.interchanged if isinstance(self.experts, ListedExperts) else ()

    def read(self, tensors: Mapping[str, Tensor]) -> MoeLayer:
        """The layer out of tensors under module names (a state dict, or a lazily read checkpoint).

        Raises:
            BadInputError: a tensor is missing.
        """
        try:
            return MoeLayer(
                self.router.read(tensors) if self.router else None,
                self.experts.read(tensors),
                self.shared_experts.read(tensors) if self.shared_experts else None,
                self.group,
                self.router.read_further(tensors) if self.router else None,
            )
        except KeyError as error:
            raise BadInputError(f"layer {self.name}: tensor {error.args[0]} is missing") from None

    def write(self, layer: MoeLayer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The layer's tensors under module names, in the shapes that they have in `tensors`; the inverse of `read`.

        Kept rows are those of `tensors`.

        Raises:
            BadInputError: `layer` lacks a part of this one, or has other sizes.
        """
        for part in ("router", "shared_experts"):
            if getattr(self, part) and not getattr(layer, part):
                raise BadInputError(f"layer {self.name}: no {part} to be written")
        if layer.experts.num_experts != self.num_experts:
            raise BadInputError(
                f"layer {self.name} has {self.num_experts} experts; {layer.experts.num_experts} cannot be written"
            )
        written = self.experts.write(layer.experts)
        if self.shared_experts and layer.shared_experts:
            written |= self.shared_experts.write(layer.shared_experts)
        written = {name: self._completed(name, tensor, tensors[name]) for name, tensor in written.items()}
        return self.write_router(layer.router, layer.further_rows, tensors) | written

    def write_router(
        self, router: Router | None, further_rows: Router | None, tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The part of `write` that belongs to the router; nothing without."""
        written = self.router.write(router, further_rows) if self.router and router else {}
        return {name: self._completed(name, tensor, tensors[name]) for name, tensor in written.items()}

    def _completed(self, name: str, tensor: Tensor, original: Tensor) -> Tensor:
        kept = dict(self.kept_rows).get(name, 0)
        own = original[:-kept] if kept else original
        # Ernie stores its selection biases as [1, E].
        if tensor.squeeze().shape != own.squeeze().shape:
            raise BadInputError(
                f"layer {self.name}: {name} has shape {tuple(own.shape)}; {tuple(tensor.shape)} cannot be written"
            )
        return torch.cat([tensor, original[-kept:]]) if kept else tensor.reshape(original.shape)
