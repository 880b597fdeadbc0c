"""One pair of endpoints under every method and every control."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from hf_moe_lmc.adapters import moe_layers
from hf_moe_lmc.aligner import MoeAligner
from hf_moe_lmc.alignment import Alignment, SavedWeights, Weights, aligned, merged, scramble
from hf_moe_lmc.connectivity import Barrier, WeightPath, gather_statistics, linear_path, measure
from hf_moe_lmc.matching import align_layers
from hf_moe_lmc.names import ExpertOrder
from hf_moe_lmc.progress import Progress
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation

Order = tuple[int, ...]

COMPARED: tuple[ExpertOrder, ...] = ("units", "gate", "gram", "joint")
_NOTHING = 1e-12  # nats


@dataclass(frozen=True)
class MethodResult:
    """One method on one pair.

    Args:
        barrier: the path's curves.
        rank: place of the loss barrier among all n! expert orders with matched units, 1 is best; None without one.
        l_hat: `100 (L - L_best) / (L_naive - L_best)`, per cent (arXiv:2509.11348, section 6); None likewise.
    """

    barrier: Barrier
    rank: int | None = None
    l_hat: float | None = None


@dataclass(frozen=True)
class Bench:
    """Model, data and points of all paths.

    Args:
        saved: the weights of a model that others are loaded into.
        batches: the test set.
        calibration: training images for the rescale control.
        points: t of every path.
        accelerator: where.
    """

    saved: SavedWeights
    batches: DataLoader
    calibration: list[Mapping[str, Tensor]]
    points: tuple[float, ...]
    accelerator: Accelerator

    def measure(self, path: WeightPath) -> Barrier:
        """Loss and accuracy along `path`."""
        return measure(self.saved, path, self.points, self.batches, self.accelerator).barrier


def compare_methods(
    reference: PreTrainedModel, other: PreTrainedModel, bench: Bench
) -> tuple[dict[str, MethodResult], dict[ExpertOrder, Alignment]]:
    """Every method and control on one pair of models with a single Mixture-of-Experts layer.

    Returns:
        results by method name, and the alignment found by each expert order.
    """
    (spec,) = moe_layers(reference)
    tensors, other_tensors = reference.state_dict(), other.state_dict()
    layer, other_layer = spec.read(tensors), spec.read(other_tensors)

    def path_to(symmetry: MoeSymmetry) -> WeightPath:
        return linear_path(tensors, aligned(other_tensors, [spec], {spec.name: symmetry}), [spec])

    naive = linear_path(tensors, other_tensors)

    def rescaled(t: float) -> Weights:
        known = gather_statistics(bench.saved, naive(t), [spec], bench.calibration) if 0 < t < 1 else None
        return merged([tensors, other_tensors], (1 - t, t), [spec], ["rescale"], known)

    results = {
        "naive": MethodResult(bench.measure(naive)),
        "rescale_control": MethodResult(bench.measure(rescaled)),
    }
    orders: dict[Order, Barrier] = {}
    every_order = list(permutations(range(layer.experts.num_experts)))
    for order in Progress(every_order, desc="all expert orders", unit="orders", leave=False):
        symmetry = align_layers(layer, other_layer, Permutation(torch.tensor(order))).symmetry
        orders[order] = bench.measure(path_to(symmetry))
    losses = np.array([barrier.loss_barrier for barrier in orders.values()])
    best = losses.min()
    span = max(results["naive"].barrier.loss_barrier - best, _NOTHING)  # 0 where averaging costs nothing to begin with

    def ranked(order: Order) -> MethodResult:
        loss = orders[order].loss_barrier
        return MethodResult(orders[order], 1 + int((losses < loss).sum()), float(100 * (loss - best) / span))

    aligner = MoeAligner.from_pretrained(reference, other)
    alignments = {order: cast(Alignment, aligner.align(order)) for order in COMPARED}
    for method, alignment in alignments.items():
        results[method] = ranked(tuple(alignment.layers[spec.name].symmetry.experts.index.tolist()))
    results["best_of_all_orders"] = ranked(every_order[int(losses.argmin())])
    return results, alignments


@dataclass(frozen=True)
class ScrambleResult:
    """A model against a random symmetric rewrite of itself.

    Args:
        naive_loss_barrier: between the two as they are.
        aligned_loss_barrier: after the rewrite was aligned back.
        recovered_bit_for_bit: whether the aligned weights equal the original ones exactly.
    """

    naive_loss_barrier: float
    aligned_loss_barrier: float
    recovered_bit_for_bit: bool


def scramble_and_recover(reference: PreTrainedModel, copy: PreTrainedModel, seed: int, bench: Bench) -> ScrambleResult:
    """The exact case: moves every expert and every unit of `copy`, a copy of `reference`, and aligns it back."""
    tensors = reference.state_dict()
    scrambled, _ = scramble(copy, seed)
    naive = bench.measure(linear_path(tensors, scrambled.state_dict()))
    alignment = cast(Alignment, MoeAligner.from_pretrained(reference, scrambled).align("joint"))
    recovered = alignment.apply(scrambled).state_dict()
    recovered_barrier = bench.measure(linear_path(tensors, recovered, moe_layers(reference)))
    return ScrambleResult(
        naive.loss_barrier,
        recovered_barrier.loss_barrier,
        recovered_bit_for_bit=all(torch.equal(tensors[name], recovered[name]) for name in tensors),
    )
