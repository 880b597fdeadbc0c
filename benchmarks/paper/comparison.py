"""One pair of endpoints under every method and every control."""

import math
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from itertools import permutations
from typing import get_args

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from hf_moe_lmc import align
from hf_moe_lmc.adapters import MoeLayerSpec, alignable_layers
from hf_moe_lmc.alignment import apply_symmetries
from hf_moe_lmc.connectivity import (
    BorrowedWeights,
    Curve,
    Path,
    linear_path,
    measure,
    norm_preserving_path,
    rescaled_path,
)
from hf_moe_lmc.connectivity.evaluation import answer
from hf_moe_lmc.connectivity.temperature import best_temperature
from hf_moe_lmc.matching import ExpertOrder, align_layers
from hf_moe_lmc.symmetry import MoeSymmetry, Permutation

from .cells import Cell
from .data import Data

METHODS: tuple[str, ...] = ("units", "gate", "gram", "joint", "auto")
assert set(METHODS) == set(get_args(ExpertOrder))
Symmetries = dict[str, MoeSymmetry]


class Pair:
    """Two endpoints of a cell, and what their paths are evaluated with.

    Args:
        cell: says how.
        reference, other: the endpoints.
        calibration: batches that are not evaluated on.
        test: source -> its batches; all are evaluated on.
    """

    def __init__(self, cell: Cell, reference: PreTrainedModel, other: PreTrainedModel, sources: Mapping[str, Data]):
        self.cell, self.reference, self.other = cell, reference, other
        self.specs: list[MoeLayerSpec] = alignable_layers(reference)
        self.moe = [spec for spec in self.specs if spec.router]
        self.weights = BorrowedWeights(deepcopy(reference))
        self.ends = reference.state_dict(), other.state_dict()
        self.calibration = [batch for data in sources.values() for batch in data.calibration]
        self.test = {name: data.test for name, data in sources.items()}
        self.points = tuple(np.linspace(0, 1, cell.points).tolist())
        self.accelerator = Accelerator(cpu=True)
        self.found = {method: align(reference, other, method).symmetries for method in METHODS}
        self._ends: dict[str, Curve] = {}

    def paths(self, seed: int) -> dict[str, Path]:
        """All methods and controls by name; `seed` draws the random element."""
        a, b = self.ends
        generator = torch.Generator().manual_seed(seed)
        drawn = {
            spec.name: spec.group.random_derangement(*spec.read(b).symmetry_shape, generator=generator)
            for spec in self.moe
        }
        naive = linear_path(a, b)
        paths = {
            "naive": naive,
            "naive + rescale": rescaled_path(self.weights, naive, self.moe, self.calibration),
            "naive + norms": norm_preserving_path(a, b, self.specs),
            "random": linear_path(a, self.moved(drawn)),
        }
        for method, symmetries in self.found.items():
            # Methods that agree share a path, which is evaluated once.
            twin = next((name for name in METHODS if name in paths and _same(self.found[name], symmetries)), None)
            paths[method] = paths[twin] if twin else linear_path(a, self.moved(symmetries))
        aligned = self.moved(self.found["auto"])
        paths["auto + norms"] = norm_preserving_path(a, aligned, self.specs)
        paths["auto + rescale"] = rescaled_path(self.weights, linear_path(a, aligned), self.moe, self.calibration)
        return paths

    def moved(self, symmetries: Symmetries) -> dict[str, Tensor]:
        """The other endpoint with the layers of `symmetries` rewritten."""
        return apply_symmetries(self.ends[1], [spec for spec in self.specs if spec.name in symmetries], symmetries)

    def curve(self, path: Path, source: str, points: tuple[float, ...] | None = None) -> Curve:
        """Loss and accuracy along `path` on the test set of `source`; the ends, the same of all paths, are kept."""
        points = points or self.points
        run = partial(measure, self.weights, batches=self.test[source], accelerator=self.accelerator)
        options = {"temperature": self._temperature if self.cell.temperature else None, "description": self.cell.name}
        if source not in self._ends:
            self._ends[source] = run(linear_path(*self.ends), points=(0.0, 1.0), **options)
        start, end = self._ends[source].evaluations
        return Curve(points, (start, *run(path, points=points[1:-1], **options).evaluations, end))

    def _temperature(self) -> float:
        return best_temperature(self.weights.model, self.calibration, self.accelerator)

    def order_of(self, method: str) -> tuple[int, ...]:
        """The order that a method gives the experts of the pair's only Mixture of Experts."""
        (spec,) = self.moe
        return tuple(self.found[method][spec.name].experts.index.tolist())


def compare(pair: Pair, seed: int) -> dict[str, dict]:
    """Source -> path -> its figures."""
    paths = pair.paths(seed)
    results: dict[str, dict] = {}
    for source in pair.test:
        curves: dict[int, dict] = {}
        results[source] = {
            name: curves.get(id(path)) or curves.setdefault(id(path), figures(pair.curve(path, source)))
            for name, path in paths.items()
        }
        results[source]["ensemble"] = ensemble(pair.reference, pair.other, pair.test[source])
    return results


def rank_orders(pair: Pair, naive: float) -> dict[str, object]:
    """All expert orders with matched units: the loss barrier of each; rank and L^ of every method.

    `L^ = 100 (L - L_best) / (L_naive - L_best)` (arXiv:2509.11348, section 6), None where nothing beats naive; rank 1
    is the best of n!.
    """
    (spec,), (source,) = pair.moe, pair.test
    a, b = (spec.read(end) for end in pair.ends)
    barriers = {}
    for order in permutations(range(a.experts.num_experts)):
        symmetry = align_layers(a, b, Permutation(torch.tensor(order))).symmetry
        path = linear_path(pair.ends[0], pair.moved(pair.found["units"] | {spec.name: symmetry}))
        barriers[order] = pair.curve(path, source).barrier.loss_barrier
    best = min(barriers.values())
    ranked = {}
    for method in METHODS:
        own = barriers[pair.order_of(method)]
        rank = 1 + sum(barrier < own for barrier in barriers.values())
        ranked[method] = {"rank": rank, "l_hat": 100 * (own - best) / (naive - best) if naive > best else None}
    return {"methods": ranked, "best": best, "worst": max(barriers.values()), "orders": len(barriers)}


def figures(curve: Curve) -> dict[str, object]:
    """What is kept of a curve."""
    barrier, middle = curve.barrier, curve.evaluations[curve.t.index(0.5)]
    return {
        "loss_barrier": barrier.loss_barrier,
        "loss_auc": barrier.loss_auc,
        "accuracy_barrier": barrier.accuracy_barrier,
        "accuracy_auc": barrier.accuracy_auc,
        "calibrated_barrier": curve.calibrated_barrier,
        "midpoint": {"loss": middle.loss, "accuracy": middle.accuracy},
        "loss": [round(loss, 6) for loss in barrier.loss],
        "accuracy": [round(accuracy, 6) for accuracy in barrier.accuracy],
    }


@torch.no_grad()
def ensemble(first: PreTrainedModel, second: PreTrainedModel, batches: DataLoader) -> dict[str, float]:
    """Loss and accuracy of the mean of both models' predicted probabilities."""
    loss, right, count = 0.0, 0, 0
    for batch in batches:
        (logits, labels), (others, _) = answer(first, batch), answer(second, batch)
        both = torch.logaddexp(logits.log_softmax(-1), others.log_softmax(-1)).flatten(0, 1) - math.log(2)
        labels = labels.flatten()
        loss += float(F.nll_loss(both, labels, reduction="sum"))
        right, count = right + int((both.argmax(-1) == labels).sum()), count + len(labels)
    return {"loss": loss / count, "accuracy": right / count}


def _same(first: Symmetries, second: Symmetries) -> bool:
    return all((first[name] @ second[name].inverse()).is_identity for name in first)
