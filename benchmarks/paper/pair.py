"""One pair of endpoints, its alignments, and the paths between them."""

from collections.abc import Mapping, Sequence
from copy import deepcopy

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import PreTrainedModel

from hf_moe_lmc import Alignment, align
from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.alignment import SavedWeights, aligned
from hf_moe_lmc.connectivity import (
    Calibrated,
    CalibrationData,
    Curve,
    WeightPath,
    choose_repairs,
    linear_path,
    measure,
)
from hf_moe_lmc.connectivity.controls import endpoint_experts, picked_units
from hf_moe_lmc.connectivity.evaluation import best_temperature
from hf_moe_lmc.merging import AUTOMATIC
from hf_moe_lmc.names import ExpertOrder, Repair
from hf_moe_lmc.symmetry import MoeSymmetry

from .cells import Cell
from .data import Data

METHODS: tuple[ExpertOrder, ...] = ("units", "gate", "gram", "joint", "auto")
HALF = 0.5
Symmetries = Mapping[str, MoeSymmetry]


class Pair:
    """Two endpoints of a cell, and the model, data and points of their paths.

    Args:
        cell: the settings.
        reference, other: the endpoints.
        sources: data to evaluate on.
    """

    def __init__(self, cell: Cell, reference: PreTrainedModel, other: PreTrainedModel, sources: Mapping[str, Data]):
        self.accelerator = Accelerator()
        device = self.accelerator.device
        self.cell, self.reference, self.other = cell, reference.to(device), other.to(device)
        self.specs = alignable_layers(reference)
        self.moe = [spec for spec in self.specs if spec.router]
        self.saved = SavedWeights(deepcopy(reference))
        self.endpoints = reference.state_dict(), other.state_dict()
        self.calibration = [send_to_device(batch, device) for data in sources.values() for batch in data.calibration]
        self.test = {name: [send_to_device(batch, device) for batch in data.test] for name, data in sources.items()}
        self.points = tuple(np.linspace(0, 1, cell.points).tolist())
        self.alignments = {method: align(reference, other, method) for method in METHODS}
        self.repairs: tuple[Repair, ...] = ()
        self._first: dict[str, Curve] = {}

    def paths(self, seed: int) -> dict[str, WeightPath]:
        """All methods and controls by name; `seed` draws the random element. Notes the repairs of "auto + repair"."""
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
            "naive + chain": self.repaired(b, AUTOMATIC),
            "random": linear_path(a, self.aligned(drawn)),
            # Neither averages anything inside the Mixtures of Experts.
            "one endpoint's experts": lambda t: endpoint_experts([a, b], (1 - t, t), self.moe, int(t > HALF)),
            "pick": lambda t: picked_units([a, b], (1 - t, t), self.moe),
        }
        for method, alignment in self.alignments.items():
            # Methods that agree share a path, which is evaluated once.
            same = next((name for name in METHODS if name in paths and _same(self.alignments[name], alignment)), None)
            paths[method] = paths[same] if same else linear_path(a, self.aligned(alignment.symmetries))
        other = self.aligned(self.alignments["auto"].symmetries)
        paths["auto + norms"] = self.repaired(other, ["norms"])
        paths["auto + rescale"] = self.repaired(other, ["rescale"])
        paths["auto + chain"] = self.repaired(other, AUTOMATIC)
        self.repairs, paths["auto + repair"] = self.chosen(other)
        return paths

    def repaired(self, other: Mapping[str, Tensor], repairs: Sequence[Repair]) -> WeightPath:
        """The line to `other` under `repairs`, calibrated on all calibration data."""
        calibrated = self._calibrated(other, CalibrationData(self.calibration))
        return lambda t: calibrated.weights((1 - t, t), repairs)

    def chosen(self, other: Mapping[str, Tensor]) -> tuple[tuple[Repair, ...], WeightPath]:
        """The repairs of "auto", and the line to `other` under them."""
        calibrated = self._calibrated(other, CalibrationData(self.calibration))
        repairs = choose_repairs(calibrated, (0.5, 0.5)).repairs
        return repairs, lambda t: calibrated.weights((1 - t, t), repairs)

    def aligned(self, symmetries: Symmetries) -> Mapping[str, Tensor]:
        """The other endpoint with the layers of `symmetries` rewritten."""
        return dict(aligned(self.endpoints[1], self.specs, symmetries))

    def _calibrated(self, other: Mapping[str, Tensor], data: CalibrationData) -> Calibrated:
        return Calibrated(self.saved, [self.endpoints[0], other], self.specs, data, self.accelerator)

    def curve(self, path: WeightPath, source: str) -> Curve:
        """Loss and accuracy along `path` on the test set of `source`; the endpoints of all paths are evaluated once."""
        curve = measure(
            self.saved,
            path,
            self.points,
            self.test[source],
            self.accelerator,
            temperature=self._temperature if self.cell.temperature else None,
            same_endpoints=self._first.get(source),
        )
        self._first.setdefault(source, curve)
        return curve

    def _temperature(self) -> float:
        # One number is fitted, and the fit costs more than an evaluation: one batch suffices.
        return best_temperature(self.saved.model, self.calibration[:1], self.accelerator)


def _same(first: Alignment, second: Alignment) -> bool:
    return all(
        (symmetry @ second.symmetries[name].inverse()).is_identity for name, symmetry in first.symmetries.items()
    )
