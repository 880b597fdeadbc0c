"""Learned matching: units rearranged by the loss of the merge, starting from weight matching."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from huggingface_hub.utils import tqdm
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_moe_lmc.adapters import MoeLayerSpec, alignable_layers
from hf_moe_lmc.alignment import Alignment
from hf_moe_lmc.matching import LayerAlignment, layer_distance, solve_assignment
from hf_moe_lmc.merging import Interpolation, interpolate_layers, preserve_norms, widest_dtype
from hf_moe_lmc.moe import ExpertBank, MoeLayer, act
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation, SignedPermutation

from .evaluation import evaluate
from .live_weights import BorrowedWeights, borrow
from .path import moved
from .predictions import IGNORED_LABEL, answer
from .repairs import repaired_path

ROUND = 10  # steps between two looks at held-out data
LEARNING_RATE = 0.01
NEAR_MIDPOINT = (0.4, 0.6)


@dataclass(frozen=True)
class LearnedMatching:
    """What learning found.

    Args:
        alignment: the best one on held-out data; the one it started from unless another is better.
        held_out_loss: of the midpoint, at the start and after every round of steps, nats.
    """

    alignment: Alignment
    held_out_loss: tuple[float, ...]


def learn_matching(
    reference: PreTrainedModel,
    other: Mapping[str, Tensor],
    alignment: Alignment,
    batches: Sequence[Mapping[str, Tensor]],
    held_out: Sequence[Mapping[str, Tensor]],
    steps: int = 30,
    seed: int = 0,
    accelerator: Accelerator | None = None,
) -> LearnedMatching:
    """Lowers the loss near the midpoint over the order (and signs) of units; no weight is trained.

    Every expert has latent scores Z `[F, F]`, at first the similarities of weight matching, whatever the order of units
    in `alignment`. The assignment of Z moves the other model's units; its gradient is taken for that of Z
    (straight-through). t is uniform in [0.4, 0.6], layers keep their norms as in `preserve_norms`, Adam. One side is
    enough: both span the same moves. Experts stay in the order of `alignment`.
    Source: Git Re-Basin, arXiv:2209.04836, section 3.3; started as in arXiv:2506.22712.

    Args:
        reference: t = 0; lends its place, and has its own weights again afterwards.
        other: weights under module names, t = 1.
        alignment: the order of experts, and what has to be improved.
        batches: to learn from, one after the other.
        held_out: other batches, and none that are evaluated on; an alignment is only taken if its midpoint is better
            here.
        steps: the budget.
        seed: of t.
        accelerator: the processes; each does the same.
    """
    accelerator = accelerator or Accelerator()
    generator, specs = torch.Generator().manual_seed(seed), alignable_layers(reference)
    with borrow(reference) as weights:
        start = dict(moved(other, specs, alignment.symmetries))
        layers = [_LatentLayer.of(spec, weights, start) for spec in specs]
        optimizer = torch.optim.Adam([latent for layer in layers for latent in layer.latents], lr=LEARNING_RATE)

        def midpoint_loss(found: Mapping[str, MoeSymmetry]) -> float:
            weights.load(repaired_path(weights, moved(start, specs, found), specs, ("norms",))(0.5))
            return evaluate(reference, held_out, accelerator).loss

        best = {spec.name: MoeSymmetry.identity(*spec.read(start).symmetry_shape) for spec in specs}
        lowest = midpoint_loss(best)
        losses = [lowest]
        for step in tqdm(range(steps), desc="learned matching", unit="step", leave=False):
            t = float(torch.empty(1).uniform_(*NEAR_MIDPOINT, generator=generator))
            merged = _merge(weights, start, layers, t)
            functional_call(_Loss(reference), merged, (batches[step % len(batches)],)).backward()
            optimizer.step()
            optimizer.zero_grad()
            if (step + 1) % ROUND == 0 or step + 1 == steps:
                found = {layer.spec.name: layer.symmetry() for layer in layers}
                losses.append(midpoint_loss(found))
                if losses[-1] < lowest:  # NaN is not
                    best, lowest = found, losses[-1]
        records = {spec.name: _record(spec, alignment, best[spec.name], weights, other) for spec in specs}
    return LearnedMatching(replace(alignment, layers=records, config=None), tuple(losses))


@dataclass(frozen=True)
class _LatentBank:
    """Latent scores of every expert's units, and the sign that unit j has in the place of unit i; `[E, F, F]`."""

    latent: Float[Tensor, "E F F"]
    signs: Float[Tensor, "E F F"]

    @classmethod
    def of(cls, a: ExpertBank, b: ExpertBank, signed: bool) -> "_LatentBank":
        with_sign = _similarity(a.signed_unit_terms(), b.signed_unit_terms())
        without = _similarity(a.unsigned_unit_terms(), b.unsigned_unit_terms())
        similarity = without + (with_sign.abs() if signed else with_sign)
        scale = similarity.diagonal(dim1=1, dim2=2).abs().mean()
        signs = torch.where(with_sign < 0, -1.0, 1.0) if signed else torch.ones_like(similarity)
        return cls((similarity / scale).requires_grad_(), signs)

    def order(self) -> Permutation:
        return Permutation(torch.stack([solve_assignment(scores).permutation.index for scores in self.latent]))

    def symmetry(self) -> SignedPermutation:
        order = self.order()
        signs = self.signs.cpu().gather(2, order.index[..., None])[..., 0]
        return SignedPermutation(order, signs.to(torch.int8))

    def move(self, bank: ExpertBank) -> ExpertBank:
        """The bank under `symmetry`, with a gradient for the latent scores."""
        index = self.order().index.to(self.latent.device)
        hard = torch.zeros_like(self.latent).scatter_(2, index[..., None], 1.0)
        plain = hard + self.latent - self.latent.detach()
        signed = plain * self.signs
        return replace(
            bank,
            up_proj=signed @ bank.up_proj,
            down_proj=bank.down_proj @ signed.mT,
            gate_proj=None if bank.gate_proj is None else plain @ bank.gate_proj,
            up_bias=None if bank.up_bias is None else (signed @ bank.up_bias[..., None])[..., 0],
            gate_bias=None if bank.gate_bias is None else (plain @ bank.gate_bias[..., None])[..., 0],
        )


@dataclass(frozen=True)
class _LatentLayer:
    """One layer: both ends, and the latent scores of its units."""

    spec: MoeLayerSpec
    reference: MoeLayer
    other: MoeLayer
    experts: _LatentBank
    shared_experts: _LatentBank | None

    @classmethod
    def of(cls, spec: MoeLayerSpec, reference: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> "_LatentLayer":
        a, b = spec.read(reference), spec.read(other)
        dtype, group = widest_dtype(a, b), a.group
        a, b = a.to(dtype), b.to(dtype)
        shared = None
        if a.shared_experts and b.shared_experts:
            shared = _LatentBank.of(a.shared_experts, b.shared_experts, group.shared_unit_signs)
        return cls(spec, a, b, _LatentBank.of(a.experts, b.experts, group.unit_signs), shared)

    @property
    def latents(self) -> list[Tensor]:
        return [bank.latent for bank in (self.experts, self.shared_experts) if bank]

    def symmetry(self) -> MoeSymmetry:
        shared = self.shared_experts.symmetry() if self.shared_experts else None
        return MoeSymmetry(Permutation.identity(self.reference.experts.num_experts), self.experts.symmetry(), shared)

    def merged(self, t: float) -> MoeLayer:
        shared = self.other.shared_experts
        if shared and self.shared_experts:
            shared = self.shared_experts.move(shared)
        moved = replace(self.other, experts=self.experts.move(self.other.experts), shared_experts=shared)
        return preserve_norms(interpolate_layers(self.reference, moved, t), self.reference, moved, t)


def _similarity(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return sum((x @ y.mT for x, y in zip(a, b, strict=True)), torch.zeros(()))


class _Loss(nn.Module):
    """Mean cross-entropy of a model; a module, so that `functional_call` can give it other weights."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        logits, labels = answer(self.model, batch)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED_LABEL)


def _merge(
    reference: BorrowedWeights, other: Mapping[str, Tensor], layers: Sequence[_LatentLayer], t: float
) -> dict[str, Tensor]:
    """The weights at t under the names that they have in `_Loss`, with a gradient for the latent scores."""
    tensors = dict(Interpolation(reference, other, t))
    for layer in layers:
        written = layer.spec.write(layer.merged(t), tensors)
        tensors |= {name: tensor.to(tensors[name].dtype) for name, tensor in written.items()}
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def _record(
    spec: MoeLayerSpec,
    alignment: Alignment,
    learned: MoeSymmetry,
    reference: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
) -> LayerAlignment:
    start = alignment.layers[spec.name]
    symmetry = learned @ start.symmetry
    after = layer_distance(spec.read(reference), act(symmetry, spec.read(other)))
    return LayerAlignment(symmetry, start.distance_before, after)
