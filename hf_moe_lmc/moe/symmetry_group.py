"""Which symmetries a layer admits."""

from dataclasses import dataclass

import torch

from hf_moe_lmc.symmetry import MoeSymmetry, Permutation, SignedPermutation


@dataclass(frozen=True)
class SymmetryGroup:
    """What leaves the function of a layer unchanged, beyond the order of experts and units.

    Args:
        expert_groups: G, with group-limited routing: experts e of group `e // (E / G)` move as a group, and inside it.
            1 admits every order.
        router_translation: adding one vector to all rows of the router changes nothing. True of a softmax over all
            scores or over the selected ones, which ignores a common shift as does the choice of the largest scores
            (arXiv:2509.11348, section 3); not of a sigmoid.
        selection_bias_constant: adding a constant to all selection biases changes nothing.
        unit_signs: a unit's row of up_proj and column of down_proj may both change sign; true of `act(gate) * up`.
        shared_unit_signs: the same for shared experts.
    """

    expert_groups: int = 1
    router_translation: bool = False
    selection_bias_constant: bool = False
    unit_signs: bool = False
    shared_unit_signs: bool = False

    def random_derangement(
        self,
        experts: int,
        units: int,
        shared: tuple[int, int] | None = None,
        generator: torch.Generator | None = None,
    ) -> MoeSymmetry:
        """A random element that leaves no expert and no unit at its place, for the sizes of `MoeLayer.symmetry_shape`.

        A single expert, which has nowhere to go, stays.
        """

        def signed(size: tuple[int, int], signs: bool) -> SignedPermutation:
            return SignedPermutation.random_derangement(*size, signed=signs, generator=generator)

        return MoeSymmetry(
            self._random_order(experts, generator),
            signed((experts, units), self.unit_signs),
            signed(shared, self.shared_unit_signs) if shared else None,
        )

    def _random_order(self, experts: int, generator: torch.Generator | None) -> Permutation:
        if experts == 1:
            return Permutation.identity(1)
        if self.expert_groups == 1:
            return Permutation.random_derangement(experts, generator=generator)
        size = experts // self.expert_groups
        groups = Permutation.random_derangement(self.expert_groups, generator=generator).index
        inside = Permutation.random(self.expert_groups, size, generator=generator).index
        return Permutation((groups[:, None] * size + inside).flatten())
