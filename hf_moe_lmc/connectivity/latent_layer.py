"""What learned matching learns: latent scores of one layer's moves, and the gradient that the loss gives them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hf_moe_lmc.adapters import MoeLayerSpec
from hf_moe_lmc.matching import solve_assignment, solve_assignments
from hf_moe_lmc.matching.distance import GaugedLayer
from hf_moe_lmc.matching.joint import JointTable
from hf_moe_lmc.merging import interpolate_layers, preserve_norms, widest_dtype
from hf_moe_lmc.moe import ExpertBank, MoeLayer
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation, SignedPermutation


@dataclass(frozen=True)
class LatentUnits:
    """Latent scores of every expert's units, and the sign that unit j has in the place of unit i; `[E, F, F]`."""

    scores: Float[Tensor, "E F F"]
    signs: Float[Tensor, "E F F"]

    @classmethod
    def of(cls, a: ExpertBank, b: ExpertBank, signed: bool) -> "LatentUnits":
        """The similarities of weight matching, of a size of 1."""
        with_sign = _similarity(a.signed_unit_terms(), b.signed_unit_terms())
        without = _similarity(a.unsigned_unit_terms(), b.unsigned_unit_terms())
        similarity = without + (with_sign.abs() if signed else with_sign)
        scale = similarity.diagonal(dim1=1, dim2=2).abs().mean()
        signs = torch.where(with_sign < 0, -1.0, 1.0) if signed else torch.ones_like(similarity)
        return cls((similarity / scale).requires_grad_(), signs)

    def symmetry(self) -> SignedPermutation:
        """The best assignment, with its signs."""
        order = self._order()
        signs = self.signs.cpu().gather(2, order.index[..., None])[..., 0]
        return SignedPermutation(order, signs.to(torch.int8))

    def move(self, bank: ExpertBank) -> ExpertBank:
        """The bank under `symmetry`, with a gradient for the scores."""
        index = self._order().index.to(self.scores.device)
        hard = torch.zeros_like(self.scores).scatter_(2, index[..., None], 1.0)
        plain = hard + self.scores - self.scores.detach()
        signed = plain * self.signs
        return replace(
            bank,
            up_proj=signed @ bank.up_proj,
            down_proj=bank.down_proj @ signed.mT,
            gate_proj=None if bank.gate_proj is None else plain @ bank.gate_proj,
            up_bias=None if bank.up_bias is None else (signed @ bank.up_bias[..., None])[..., 0],
            gate_bias=None if bank.gate_bias is None else (plain @ bank.gate_bias[..., None])[..., 0],
        )

    def _order(self) -> Permutation:
        return Permutation(torch.stack([found.columns for found in solve_assignments(self.scores)]))


@dataclass(frozen=True)
class LatentOrder:
    """Latent scores of the order of experts.

    Args:
        scores: `[E, E]`, of expert j of the other layer in slot i.
        units: (i, j) -> the move of expert j's units that fits slot i best, `[F]`.
        groups: see `SymmetryGroup.expert_groups`.
    """

    scores: Float[Tensor, "E E"]
    units: Mapping[tuple[int, int], SignedPermutation]
    groups: int

    @classmethod
    def of(cls, reference: MoeLayer, other: MoeLayer) -> "LatentOrder":
        """The table of the "joint" order, about its mean, in exchanges of two experts; E^2 unit assignments."""
        table = JointTable.of(*GaugedLayer.pair(reference, other))
        slots = torch.arange(len(table.costs))
        for shift in slots:
            table.solve(Permutation((slots + shift) % len(slots)))
        values, pairs = -table.costs / 2, list(table.pairs)
        groups = reference.group.expert_groups
        best = solve_assignment(values, groups).objective / len(values)
        scores = values - values.mean()
        gain = best - values.mean()
        scores = (scores / gain if gain > 0 else scores).float().requires_grad_()
        return cls(scores, {pair: table.pairs[pair].units for pair in pairs}, groups)

    def permutation(self) -> Permutation:
        """The best order that the layer admits."""
        return solve_assignment(self.scores, self.groups).permutation


@dataclass(frozen=True)
class LatentLayer:
    """One layer: both ends, and the latent scores of the moves of the other one.

    Args:
        spec: the layer.
        reference, other: its ends, in float32 or better.
        home: the order of experts at the start.
        order: latent scores of it; None where experts cannot be reordered.
        units: latent scores of every expert's units in the slot where it is at home; elsewhere units are matched by
            weight. None where units have no order of their own.
        shared_units: those of shared experts, if there are any.
    """

    spec: MoeLayerSpec
    reference: MoeLayer
    other: MoeLayer
    home: Permutation
    order: LatentOrder | None
    units: LatentUnits | None
    shared_units: LatentUnits | None

    @classmethod
    def of(cls, spec: MoeLayerSpec, reference: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> "LatentLayer":
        """The scores of weight matching."""
        a, b = spec.read(reference), spec.read(other)
        dtype, group = widest_dtype(a, b), a.group
        a, b = a.to(dtype), b.to(dtype)
        movable = a.router and b.router and not (group.fixed_experts or group.product_keys)
        order = LatentOrder.of(a, b) if movable else None
        home = order.permutation() if order else Permutation.identity(a.experts.num_experts)
        units = (
            LatentUnits.of(a.experts, b.experts.permute_experts(home), group.unit_signs) if group.unit_order else None
        )
        shared = None
        if a.shared_experts and b.shared_experts:
            shared = LatentUnits.of(a.shared_experts, b.shared_experts, group.shared_unit_signs)
        return cls(spec, a, b, home, order, units, shared)

    @property
    def scores(self) -> list[Tensor]:
        """All that is learned."""
        return [latent.scores for latent in (self.order, self.units, self.shared_units) if latent]

    def symmetry(self) -> MoeSymmetry:
        """The move that the scores choose."""
        found = MoeSymmetry.identity(*self.other.symmetry_shape)
        units = self.units.symmetry() if self.units else found.units
        experts = self.order.permutation() if self.order else self.home
        for slot, candidate in self._away(experts).items():
            units.permutation.index[slot], units.signs[slot] = candidate.permutation.index, candidate.signs
        return MoeSymmetry(experts, units, self.shared_units.symmetry() if self.shared_units else found.shared_units)

    def moved(self) -> MoeLayer:
        """The other layer under `symmetry`, with gradients for the scores of units; see `credit_order`."""
        bank = self.other.experts.permute_experts(self.home)
        bank = self.units.move(bank) if self.units else bank
        router, shared = self.other.router, self.other.shared_experts
        if self.order and router:
            experts = self.order.permutation()
            away = {slot: self._in_slot(slot, int(experts.index[slot])) for slot in self._away(experts)}
            bank = _with_slots(bank, away) if away else bank
            bank = bank.map(_watched)
            router = router.permute_experts(experts).map(_watched)
        if self.shared_units and shared:
            shared = self.shared_units.move(shared)
        return replace(self.other, router=router, experts=bank, shared_experts=shared)

    def credit_order(self, moved: MoeLayer) -> None:
        """Give the scores of the order the gradient `<d loss / d slot_i, expert j as slot i would have it>`.

        That of the permutation matrix, taken for that of the scores (straight-through), from the gradients that
        `moved` has after the loss was propagated back; one expert at a time.
        """
        if self.order is None or self.other.router is None or moved.router is None:
            return
        found = torch.zeros_like(self.order.scores)
        for tensor, own in zip(moved.router.tensors().values(), self.other.router.tensors().values(), strict=True):
            if tensor.grad is not None:
                found += (tensor.grad.reshape(len(own), -1) @ own.reshape(len(own), -1).mT).cpu()
        slots = {name: tensor.grad for name, tensor in moved.experts.tensors().items() if tensor.grad is not None}
        for slot, expert in self.order.units:
            there = self._in_slot(slot, expert).tensors()
            found[slot, expert] += sum(float((grad[slot] * there[name][0]).sum()) for name, grad in slots.items())
        self.order.scores.grad = found

    def merged(self, moved: MoeLayer, t: float) -> MoeLayer:
        """The point t between both ends, with norms kept."""
        return preserve_norms(interpolate_layers(self.reference, moved, t), self.reference, moved, t)

    def _away(self, experts: Permutation) -> dict[int, SignedPermutation]:
        """Slots that hold another expert than at the start -> the move of its units."""
        if self.order is None:
            return {}
        pairs = zip(experts.index.tolist(), self.home.index.tolist(), strict=True)
        return {slot: self.order.units[slot, now] for slot, (now, before) in enumerate(pairs) if now != before}

    def _in_slot(self, slot: int, expert: int) -> ExpertBank:
        """One expert of the other layer, its units matched by weight to those of a slot."""
        assert self.order is not None
        units = self.order.units[slot, expert]
        move = SignedPermutation(Permutation(units.permutation.index[None]), units.signs[None])
        return self.other.experts.map(lambda tensor: tensor[expert, None]).permute_units(move)


def _with_slots(bank: ExpertBank, slots: Mapping[int, ExpertBank]) -> ExpertBank:
    """The bank with other experts in some slots."""
    others = {slot: one.tensors() for slot, one in slots.items()}
    return ExpertBank(
        **{
            name: torch.cat([others[e][name] if e in others else tensor[e, None] for e in range(bank.num_experts)])
            for name, tensor in bank.tensors().items()
        }
    )


def _watched(tensor: Tensor) -> Tensor:
    """A tensor that keeps its gradient."""
    tensor = tensor if tensor.requires_grad else tensor.detach().clone().requires_grad_()
    tensor.retain_grad()
    return tensor


def _similarity(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return sum((x @ y.mT for x, y in zip(a, b, strict=True)), torch.zeros(()))
