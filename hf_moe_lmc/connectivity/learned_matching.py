"""Learned matching: experts and units rearranged by the loss of the merge, starting from weight matching."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from huggingface_hub.utils import tqdm
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_moe_lmc.adapters import MoeLayerSpec, alignable_layers
from hf_moe_lmc.alignment import Alignment
from hf_moe_lmc.errors import BadInputError
from hf_moe_lmc.matching import LayerAlignment, align_layers, layer_distance
from hf_moe_lmc.merging import Interpolation
from hf_moe_lmc.moe import MoeLayer, act
from hf_moe_lmc.symmetry import MoeSymmetry

from .calibrate import Batch
from .evaluation import evaluate
from .latent_layer import LatentLayer
from .live_weights import Beside, BorrowedWeights, LiveWeights, borrow
from .path import moved
from .predictions import IGNORED_LABEL, answer
from .repairs import repaired_path

STEPS = 30
ROUND = 10  # steps between two looks at held-out data
LEARNING_RATE = 0.01
NEAR_MIDPOINT = (0.4, 0.6)


@dataclass(frozen=True)
class LearnedMatching:
    """What learning found.

    Args:
        alignment: the best one on held-out data; the one it started from unless another is better.
        held_out_loss: of the midpoint with norms kept, at the start and after every round of steps, nats.
    """

    alignment: Alignment
    held_out_loss: tuple[float, ...]


def learn_matching(
    reference: PreTrainedModel,
    other: Mapping[str, Tensor],
    alignment: Alignment,
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    steps: int = STEPS,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    state: Path | None = None,
) -> LearnedMatching:
    """Lowers the loss near the midpoint over the order of experts and the order and signs of units; trains no weight.

    Every layer has latent scores of its expert order Z `[E, E]`, at first the table of the "joint" order, and every
    expert those of its units `[F, F]`, at first the similarities of weight matching, both whatever the moves in
    `alignment`. Their assignments move the other model; the gradients of these are taken for those of the scores
    (straight-through). An expert that leaves the slot where it began has its units matched by weight there.
    t is uniform in [0.4, 0.6], layers keep their norms as in `preserve_norms`, Adam. One side is enough: both span the
    same moves. Source: Git Re-Basin, arXiv:2209.04836, section 3.3; started as in arXiv:2506.22712.

    What is gained may be no alignment: compare with `learn_from_shuffled`.

    Args:
        reference: t = 0; lends its place, and has its own weights again afterwards.
        other: weights under module names, t = 1.
        alignment: what has to be improved.
        batches: to learn from, one after the other.
        held_out: other batches, and none that are evaluated on; an alignment is only taken if its midpoint is better
            here.
        steps: the budget.
        seed: of t.
        accelerator: the processes; each does the same.
        state: a file that holds what was learned after every round; called again with the same arguments, a killed run
            goes on from there.

    Raises:
        BadInputError: a part of the model is offloaded to host memory or disk.
    """
    accelerator = accelerator or Accelerator()
    if not hasattr(reference, "hf_device_map"):
        reference.to(accelerator.device)
    batches, held_out = ([send_to_device(batch, accelerator.device) for batch in part] for part in (batches, held_out))
    specs = alignable_layers(reference)
    with borrow(reference) as weights:
        if weights.offloaded:
            raise BadInputError(f"{min(weights.offloaded)} is offloaded; learning needs the whole model on its devices")
        other = Beside(other, weights)
        start = dict(moved(other, specs, alignment.symmetries))
        layers = [LatentLayer.of(spec, weights, start) for spec in specs]
        scores = [latent for layer in layers for latent in layer.scores]
        optimizer = torch.optim.Adam(scores, lr=LEARNING_RATE)
        generator, progress = torch.Generator().manual_seed(seed), _Progress()

        def midpoint_loss(found: Mapping[str, MoeSymmetry] | None) -> float:
            end = moved(start, specs, found) if found else start
            weights.load(repaired_path(weights, end, specs, ("norms",))(0.5))
            return evaluate(reference, held_out, accelerator).loss

        if state and state.exists():
            progress = _Progress.load(state, scores, optimizer, generator)
        else:
            progress.losses.append(midpoint_loss(None))
        for step in tqdm(range(steps), desc="learned matching", unit="step", leave=False):
            if step < progress.step:
                continue
            t = float(torch.empty(1).uniform_(*NEAR_MIDPOINT, generator=generator))
            others = [layer.moved() for layer in layers]
            merged = _merge(weights, start, layers, others, t)
            functional_call(_Loss(reference), merged, (batches[step % len(batches)],)).backward()
            for layer, other_layer in zip(layers, others, strict=True):
                layer.credit_order(other_layer)
            optimizer.step()
            optimizer.zero_grad()
            if (step + 1) % ROUND == 0 or step + 1 == steps:
                found = {layer.spec.name: layer.symmetry() for layer in layers}
                progress.add(step + 1, midpoint_loss(found), scores)
                if state:
                    progress.save(state, scores, optimizer, generator)
        if progress.best:
            with torch.no_grad():
                for latent, best in zip(scores, progress.best, strict=True):
                    latent.copy_(best)
            records = {
                layer.spec.name: _record(layer.spec, alignment, layer.symmetry(), weights, other) for layer in layers
            }
            alignment = replace(alignment, layers=records, config=None)
    return LearnedMatching(alignment, tuple(progress.losses))


def learn_from_shuffled(
    reference: PreTrainedModel,
    other: Mapping[str, Tensor],
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    steps: int = STEPS,
    accelerator: Accelerator | None = None,
    state: Path | None = None,
) -> LearnedMatching:
    """The control of `learn_matching`: the same from `shuffled_layers`, aligned."""
    own, specs = LiveWeights(reference), alignable_layers(reference)
    shuffled = shuffled_layers(other, specs)
    layers = {spec.name: align_layers(spec.read(own), spec.read(Beside(shuffled, own))) for spec in specs}
    start = Alignment(layers)
    return learn_matching(reference, shuffled, start, batches, held_out, steps, accelerator=accelerator, state=state)


def shuffled_layers(
    tensors: Mapping[str, Tensor], specs: Sequence[MoeLayerSpec], seed: int = 0
) -> Mapping[str, Tensor]:
    """`tensors` with the entries of every tensor of the layers of `specs` in a random order.

    Weights of the same sizes with nothing to align: what learning gains from them is no alignment.
    """
    generator = torch.Generator().manual_seed(seed)

    def shuffled(tensor: Tensor) -> Tensor:
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        return tensor.flatten()[order].reshape(tensor.shape)

    result = dict(tensors)
    for spec in specs:
        result |= {name: shuffled(tensors[name]) for name in spec.tensor_names}
    return result


@dataclass
class _Progress:
    """Steps done, loss of every look at held-out data, and the scores of the best; None is the start."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    best: list[Tensor] | None = None

    def add(self, step: int, loss: float, scores: Sequence[Tensor]) -> None:
        lowest = min((known for known in self.losses if not math.isnan(known)), default=math.inf)
        if loss < lowest:  # NaN is not
            self.best = [latent.detach().clone() for latent in scores]
        self.step = step
        self.losses.append(loss)

    def save(
        self, file: Path, scores: Sequence[Tensor], optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        learned = {"scores": list(scores), "optimizer": optimizer.state_dict(), "generator": generator.get_state()}
        partial = file.with_suffix(".partial")
        torch.save({"step": self.step, "losses": self.losses, "best": self.best} | learned, partial)
        os.replace(partial, file)

    @classmethod
    def load(
        cls, file: Path, scores: Sequence[Tensor], optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> "_Progress":
        found = torch.load(file, weights_only=True)
        with torch.no_grad():
            for latent, learned in zip(scores, found["scores"], strict=True):
                latent.copy_(learned)
        optimizer.load_state_dict(found["optimizer"])
        generator.set_state(found["generator"])
        return cls(found["step"], found["losses"], found["best"])


class _Loss(nn.Module):
    """Mean cross-entropy of a model; a module, so that `functional_call` can give it other weights."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        logits, labels = answer(self.model, batch)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED_LABEL)


def _merge(
    reference: BorrowedWeights,
    other: Mapping[str, Tensor],
    layers: Sequence[LatentLayer],
    others: Sequence[MoeLayer],
    t: float,
) -> dict[str, Tensor]:
    """The weights at t under the names that they have in `_Loss`, with a gradient for the latent scores."""
    tensors = dict(Interpolation(reference, other, t))
    for layer, other_layer in zip(layers, others, strict=True):
        written = layer.spec.write(layer.merged(other_layer, t), tensors)
        tensors |= {name: tensor.to(tensors[name].dtype) for name, tensor in written.items()}
    model = reference.model
    # Of tied weights, `functional_call` takes one name.
    own = dict([*model.named_parameters(), *model.named_buffers()])
    return {f"model.{name}": tensor for name, tensor in tensors.items() if name in own}


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
