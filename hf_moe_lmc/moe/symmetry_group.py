"""The symmetries that a layer admits."""

from dataclasses import dataclass
from typing import Literal

import torch

from hf_moe_lmc.symmetry import MoeSymmetry, Permutation, SignedPermutation

FurtherRows = Literal["shared experts", "zero experts", "skipped tokens"]


@dataclass(frozen=True)
class SymmetryGroup:
    """The symmetries of a layer beyond the order of experts and units: what leaves its function unchanged.

    Scales are symmetries that no alignment writes, since that would round weights; see `MoeLayer.in_gauge`.

    Args:
        expert_groups: G, with group-limited routing: experts e of group `e // (E / G)` move as a group, and inside it.
            1 admits every order.
        fixed_experts: no order of experts but their own is admitted.
        fixed_units: no order of the routed experts' units but their own is admitted, as of query heads.
        product_keys: experts are addressed by two keys, and expert (i, j) is unit j of slot i. One order moves the keys
            of both, so units have none of their own: that of the slots is also that of the units in every slot.
        router_translation: adding one vector to all rows of the router changes nothing. True of a softmax over all
            scores or over the selected ones, which ignores a common shift as does the choice of the largest scores
            (arXiv:2509.11348, section 3); not of a sigmoid.
        router_scale: all rows of the router times c > 0 changes nothing; true where one expert is chosen, and weighs 1.
        selection_bias_constant: adding a constant to all selection biases changes nothing.
        unit_signs: a unit's row of up_proj and column of down_proj may both change sign; true of `act(gate) * up`.
        unit_scale_degree: d, where a unit's row of up_proj (and up_bias) times c > 0 and its column of down_proj
            divided by c^d changes nothing: 1 of `act(gate) * up` and `relu(up)`, 2 of `relu(up)^2`; 0 if none is free.
        expert_output_scale: an expert's down_proj times c > 0 changes nothing, because a norm follows.
        shared_unit_signs, shared_unit_scale_degree: the same of shared experts.
        further_rows: owner of the rows of the router that follow those of the routed experts. Shared experts move with
            theirs; zero experts have nothing else.
    """

    expert_groups: int = 1
    fixed_experts: bool = False
    fixed_units: bool = False
    product_keys: bool = False
    router_translation: bool = False
    router_scale: bool = False
    selection_bias_constant: bool = False
    unit_signs: bool = False
    unit_scale_degree: int = 0
    expert_output_scale: bool = False
    shared_unit_signs: bool = False
    shared_unit_scale_degree: int = 0
    further_rows: FurtherRows | None = None

    @property
    def expert_order(self) -> Literal["all", "groups", "keys", "none"]:
        """The orders of experts that are admitted."""
        if self.product_keys:
            return "keys"
        if self.fixed_experts:
            return "none"
        return "all" if self.expert_groups == 1 else "groups"

    @property
    def unit_order(self) -> bool:
        """Whether the routed experts' units have an order of their own."""
        return not (self.fixed_units or self.product_keys)

    def random_derangement(
        self,
        experts: int,
        units: int,
        shared: tuple[int, int] | None = None,
        zero: int = 0,
        generator: torch.Generator | None = None,
    ) -> MoeSymmetry:
        """A random element that leaves no expert and no unit at its place, for the sizes of `MoeLayer.symmetry_shape`.

        An expert or unit that is alone or fixed stays.
        """

        def signed(size: tuple[int, int], signs: bool) -> SignedPermutation:
            if size[1] == 1:
                return SignedPermutation.identity(*size)
            return SignedPermutation.random_derangement(*size, signed=signs, generator=generator)

        order = self._random_order(experts, generator)
        if self.unit_order:
            inside = signed((experts, units), self.unit_signs)
        elif self.product_keys:
            inside = SignedPermutation.unsigned(Permutation(order.index.repeat(experts, 1)))
        else:
            inside = SignedPermutation.identity(experts, units)
        return MoeSymmetry(
            order,
            inside,
            signed(shared, self.shared_unit_signs) if shared else None,
            _derangement(shared[0], generator) if shared else None,
            _derangement(zero, generator) if zero else None,
        )

    def _random_order(self, experts: int, generator: torch.Generator | None) -> Permutation:
        if self.fixed_experts:
            return Permutation.identity(experts)
        if experts == 1 or self.expert_groups == 1:
            return _derangement(experts, generator)
        size = experts // self.expert_groups
        groups = Permutation.random_derangement(self.expert_groups, generator=generator).index
        inside = Permutation.random(self.expert_groups, size, generator=generator).index
        return Permutation((groups[:, None] * size + inside).flatten())


def _derangement(size: int, generator: torch.Generator | None) -> Permutation:
    return Permutation.identity(1) if size == 1 else Permutation.random_derangement(size, generator=generator)
