"""One pair of endpoints, its alignments, and the paths between them."""

from collections.abc import Mapping, Sequence
from copy import deepcopy

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from hf_moe_lmc.alignment import (
    Alignment,
    AlignmentConfig,
    SavedWeights,
    Weights,
    align_pair,
    aligned,
    open_models,
)
from hf_moe_lmc.connectivity import (
    Calibrated,
    CalibrationData,
    Curve,
    WeightPath,
    choose_repairs,
    linear_path,
    measure,
)
from hf_moe_lmc.connectivity.evaluation import best_temperature
from hf_moe_lmc.names import ExpertOrder, Repair
from hf_moe_lmc.symmetry import MoeSymmetry

from .cells import Cell
from .data import Data

METHODS: tuple[ExpertOrder, ...] = ("units", "gate", "gram", "joint", "auto")
MIDPOINT = (0.5, 0.5)


class Pair:
    """Two endpoints of a cell, and what their paths are evaluated with.

    Args:
        cell: says how.
        reference, other: the endpoints.
        sources: all are evaluated on.
    """

    def __init__(self, cell: Cell, reference: PreTrainedModel, other: PreTrainedModel, sources: Mapping[str, Data]):
        self.cell, self.reference, self.other = cell, reference, other
        pair = open_models([reference, other])
        self.specs = pair.reference.layers
        self.moe = [spec for spec in self.specs if spec.router]
        self.saved = SavedWeights(deepcopy(reference))
        self.endpoints = reference.state_dict(), other.state_dict()
        self.calibration = [batch for data in sources.values() for batch in data.calibration]
        self.test = {name: data.test for name, data in sources.items()}
        self.points = tuple(np.linspace(0, 1, cell.points).tolist())
        self.accelerator = Accelerator(cpu=True)
        self.alignments = {method: align_pair(pair, AlignmentConfig(method)) for method in METHODS}
        self.repairs: tuple[Repair, ...] = ()
        self._first: dict[str, Curve] = {}

    def paths(self, seed: int) -> dict[str, WeightPath]:
        """All methods and controls by name; `seed` draws the random element. Notes what "auto + repair" keeps."""
        a, b = self.endpoints
        generator = torch.Generator().manual_seed(seed)
        drawn = {
            spec.name: spec.group.random_derangement(*spec.read(b).symmetry_shape, generator=generator)
            for spec in self.moe
        }
        paths = {
            "naive": linear_path(a, b),
            "naive + rescale": self.repaired(b, ["rescale"]),
            "naive + norms": self.repaired(b, ["norms"]),
            "random": linear_path(a, self.aligned(drawn)),
        }
        for method, alignment in self.alignments.items():
            # Methods that agree share a path, which is evaluated once.
            twin = next((name for name in METHODS if name in paths and _same(self.alignments[name], alignment)), None)
            paths[method] = paths[twin] if twin else linear_path(a, self.aligned(alignment.symmetries))
        other = self.aligned(self.alignments["auto"].symmetries)
        paths["auto + norms"] = self.repaired(other, ["norms"])
        paths["auto + rescale"] = self.repaired(other, ["rescale"])
        halved = self._calibrated(other, self.calibration)
        self.repairs = choose_repairs(halved, MIDPOINT).repairs
        paths["auto + repair"] = lambda t: halved.weights((1 - t, t), self.repairs)
        return paths

    def repaired(self, other: Weights, repairs: Sequence[Repair]) -> WeightPath:
        """The line to `other` under `repairs`, calibrated on all calibration data."""
        # Of batches that are given twice, those that calibrate are all of them.
        twice = [batch for batch in self.calibration for _ in range(2)]
        calibrated = self._calibrated(other, twice)
        return lambda t: calibrated.weights((1 - t, t), repairs)

    def aligned(self, symmetries: Mapping[str, MoeSymmetry]) -> dict[str, Tensor]:
        """The other endpoint with the layers of `symmetries` rewritten."""
        return dict(aligned(self.endpoints[1], self.specs, symmetries))

    def curve(self, path: WeightPath, source: str) -> Curve:
        """Loss and accuracy along `path` on the test set of `source`; the endpoints, the same of all, are kept."""
        curve = measure(
            self.saved,
            path,
            self.points,
            self.test[source],
            self.accelerator,
            self.cell.name,
            temperature=self._temperature if self.cell.temperature else None,
            same_endpoints=self._first.get(source),
        )
        self._first.setdefault(source, curve)
        return curve

    def _calibrated(self, other: Weights, batches: Sequence[Mapping[str, Tensor]]) -> Calibrated:
        models = [self.endpoints[0], other]
        return Calibrated(self.saved, models, self.specs, CalibrationData(batches), self.accelerator)

    def _temperature(self) -> float:
        # One number is fitted, and the fit costs more than an evaluation: one batch suffices.
        return best_temperature(self.saved.model, self.calibration[:1], self.accelerator)


def _same(first: Alignment, second: Alignment) -> bool:
    return all(
        (symmetry @ second.symmetries[name].inverse()).is_identity for name, symmetry in first.symmetries.items()
    )
