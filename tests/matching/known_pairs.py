"""Pairs of layers whose relation is known, expert by expert, and the verdicts that are right about them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_moe_lmc.matching import LayerEvidence, align_layers
from hf_moe_lmc.moe import ExpertBank, MoeLayer, act
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation
from tests.layers import derangement

RELATED = ("in_place", "aligned")  # where noise moves units, it is a matter of degree
Change = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class KnownPair:
    """Two layers.

    Args:
        reference, other: the layers.
        labels: any of them is right.
        unrelated: how many experts of the reference have no related partner, shared ones included; None for all.
    """

    reference: MoeLayer
    other: MoeLayer
    labels: tuple[str, ...]
    unrelated: int | None = 0

    def mistakes(self, evidence: LayerEvidence | None) -> list[str]:
        """What the evidence of an alignment gets wrong, in words."""
        assert evidence is not None
        expected = len(evidence.experts) if self.unrelated is None else self.unrelated
        wrong = [] if evidence.label in self.labels else [f"{evidence.label} instead of {' or '.join(self.labels)}"]
        if evidence.unrelated != expected:
            wrong.append(f"{evidence.unrelated} experts unrelated instead of {expected}")
        return wrong

    def judge(self) -> LayerEvidence:
        """The evidence of the default alignment."""
        evidence = align_layers(self.reference, self.other).evidence
        assert evidence is not None
        return evidence


def known_pairs(layer: MoeLayer, fresh: MoeLayer, seed: int) -> dict[str, KnownPair]:
    """Name -> pair; `layer` and `fresh` are independent, of one kind, with 4 experts or more, and so are all draws."""
    count = layer.experts.num_experts

    def pair(other: MoeLayer, *labels: str, unrelated: int | None = 0, reference: MoeLayer = layer) -> KnownPair:
        return KnownPair(reference, other, labels, unrelated)

    def sibling(noise: float = 0.01, of: MoeLayer = layer) -> MoeLayer:
        return changed(of, noisy(noise), seed)

    def upcycled(noise: float, draw: int, router: MoeLayer = layer) -> MoeLayer:
        """All experts from one dense FFN, with noise of their own."""
        dense = layer.experts.map(lambda tensor: tensor[:1].expand_as(tensor).clone())
        experts = changed(replace(layer, experts=dense), noisy(noise), seed + draw).experts
        return replace(layer, router=router.router, experts=experts)

    near, some = sibling(), tuple(range(count // 2))
    copies = upcycled(0.3, 1)
    pairs = {
        "itself": pair(layer, "in_place"),
        "sibling": pair(near, "in_place"),
        "sibling, scrambled": pair(scrambled(near), "aligned"),
        **{f"noise of {noise:.0%}": pair(sibling(noise), *_by_noise(noise)) for noise in (0.05, 0.2, 0.5, 1.0, 2.0)},
        "noise of 100 %, scrambled": pair(scrambled(sibling(1.0)), "aligned"),
        **{f"int{bits}": pair(changed(layer, integers(bits), 0), *RELATED[: 1 + (bits < 3)]) for bits in (8, 4, 3, 2)},
        "fp8": pair(changed(layer, stored(torch.float8_e4m3fn), 0), "in_place"),
        "bf16": pair(changed(layer, stored(torch.bfloat16), 0), "in_place"),
        "int4, scrambled": pair(scrambled(changed(layer, integers(4), 0)), "aligned"),
        "half of the weights pruned": pair(changed(near, pruned(0.5), 0), "in_place"),
        "90 % of the weights pruned": pair(changed(near, pruned(0.9), 0), *RELATED),
        "one expert re-initialised": pair(with_experts(near, fresh, (1,)), "partly_related", unrelated=1),
        "expert 0 re-initialised, scrambled": pair(
            scrambled(with_experts(near, fresh, (0,))), "partly_related", unrelated=1
        ),
        "half of the experts re-initialised": pair(
            with_experts(near, fresh, some), "partly_related", unrelated=len(some)
        ),
        "all experts but one re-initialised": pair(
            with_experts(near, fresh, tuple(range(1, count))),
            "partly_related",
            unrelated=count - 1,
        ),
        "one expert zeroed": pair(with_experts(near, changed(near, zero, 0), (0,)), "partly_related", unrelated=1),
        "one expert twice, in the place of another": pair(
            replace(near, experts=ordered(near, [0, 0, *range(2, count)])), "partly_related", unrelated=1
        ),
        "one expert zero in both": pair(
            with_experts(near, changed(near, zero, 0), (0,)),
            "in_place",
            reference=with_experts(layer, changed(layer, zero, 0), (0,)),
        ),
        "two experts swapped, with their router rows": pair(act(_swap(layer), near), "aligned"),
        "upcycled, noise 0": pair(upcycled(0.0, 1), "in_place", reference=upcycled(0.0, 1)),
        **{
            f"upcycled twice, noise {noise}": pair(
                upcycled(noise, 100, fresh), "order_immaterial", reference=upcycled(noise, 1)
            )
            for noise in (0.02, 0.3, 1.0)
        },
        "upcycled twice, noise 0.3, scrambled": pair(
            scrambled(upcycled(0.3, 100, fresh)), "order_immaterial", reference=copies
        ),
        "upcycled, noise 0.3, sibling": pair(sibling(of=copies), "in_place", reference=copies),
        "upcycled, noise 0.3, scrambled sibling": pair(scrambled(sibling(of=copies)), "aligned", reference=copies),
        "entries shuffled": pair(changed(near, shuffled, 0), "unrelated", unrelated=None),
        "independent": pair(fresh, "unrelated", unrelated=None),
        "independent, one router": pair(replace(fresh, router=layer.router), "unrelated", unrelated=None),
    }
    group = layer.group
    if group.unit_scale_degree:
        for sigma in (1.0, 3.0):
            scaled = replace(near, experts=with_scales(near.experts, group.unit_scale_degree, sigma, seed))
            pairs[f"unit scales of sigma {sigma:.0f}"] = pair(scaled, "in_place")
            pairs[f"unit scales of sigma {sigma:.0f}, scrambled"] = pair(scrambled(scaled), "aligned")
    if layer.shared_experts is not None:
        lost = replace(near, shared_experts=fresh.shared_experts)
        unrelated = layer.shared_experts.num_experts
        pairs["shared experts re-initialised"] = pair(lost, "partly_related", unrelated=unrelated)
    return pairs


def changed(layer: MoeLayer, change: Change, seed: int) -> MoeLayer:
    """All tensors changed, each with a seed of its own."""
    tensors = enumerate(layer.tensors().items())
    return layer.with_tensors({name: change(tensor, 1000 * seed + i) for i, (name, tensor) in tensors})


def noisy(noise: float) -> Change:
    """Gaussian noise, relative to the standard deviation of the tensor."""

    def change(tensor: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(10_000_019 + seed)
        return tensor + noise * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator).to(tensor)

    return change


def integers(bits: int) -> Change:
    """Rounding to signed integers of so many bits, one scale per row."""

    def change(tensor: Tensor, seed: int) -> Tensor:
        largest = max(1, 2 ** (bits - 1) - 1)
        scale = tensor.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / largest
        if bits == 2:  # ternary: one threshold at 0.7 of the mean
            return torch.where(tensor.abs() > 0.7 * tensor.abs().mean(), tensor.sign() * tensor.abs().mean(), 0.0)
        return (tensor / scale).round().clamp(-largest, largest) * scale

    return change


def stored(dtype: torch.dtype) -> Change:
    """A round trip through a dtype, on the scale that suits it best."""

    def change(tensor: Tensor, seed: int) -> Tensor:
        scale = torch.finfo(dtype).max / tensor.abs().max() if dtype.itemsize == 1 else 1.0
        return (tensor * scale).to(dtype).to(tensor) / scale

    return change


def pruned(share: float) -> Change:
    """The smallest entries set to zero."""

    def change(tensor: Tensor, seed: int) -> Tensor:
        least = tensor.abs().flatten().kthvalue(max(1, round(share * tensor.numel()))).values
        return torch.where(tensor.abs() > least, tensor, 0.0)

    return change


def zero(tensor: Tensor, seed: int) -> Tensor:
    """No weights."""
    return torch.zeros_like(tensor)


def shuffled(tensor: Tensor, seed: int) -> Tensor:
    """The entries in a random order."""
    order = torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(seed))
    return tensor.flatten()[order].view_as(tensor)


def scrambled(layer: MoeLayer) -> MoeLayer:
    return act(derangement(layer, seed=3), layer)


def with_experts(layer: MoeLayer, source: MoeLayer, slots: tuple[int, ...]) -> MoeLayer:
    """The weights of some experts from another layer; router rows stay."""
    chosen = torch.zeros(layer.experts.num_experts, dtype=torch.bool)
    chosen[list(slots)] = True
    tensors, others = layer.experts.tensors(), source.experts.tensors()
    mixed = {
        name: torch.where(chosen.view(-1, *[1] * (tensor.ndim - 1)), others[name], tensor)
        for name, tensor in tensors.items()
    }
    return replace(layer, experts=replace(layer.experts, **mixed))


def ordered(layer: MoeLayer, experts: list[int]) -> ExpertBank:
    return layer.experts.map(lambda tensor: tensor[torch.tensor(experts)])


def with_scales(experts: ExpertBank, degree: int, sigma: float, seed: int) -> ExpertBank:
    """Log-normal scales of every unit, which change nothing."""
    generator = torch.Generator().manual_seed(seed)
    c = (sigma * torch.randn(experts.num_experts, experts.num_units, generator=generator)).exp().to(experts.up_proj)
    bias = None if experts.up_bias is None else experts.up_bias * c
    up, down = experts.up_proj * c[..., None], experts.down_proj / c[:, None] ** degree
    return replace(experts, up_proj=up, down_proj=down, up_bias=bias)


def _by_noise(noise: float) -> tuple[str, ...]:
    return RELATED if noise > 0.5 else ("in_place",)


def _swap(layer: MoeLayer) -> MoeSymmetry:
    """The first two experts exchanged, which are of one group if there are groups."""
    order = torch.arange(layer.experts.num_experts)
    order[:2] = order[:2].flip(0)
    return replace(MoeSymmetry.identity(*layer.symmetry_shape), experts=Permutation(order))
