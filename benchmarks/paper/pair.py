"""One pair of endpoints, its alignments, and the paths between them."""

from collections.abc import Mapping
from copy import deepcopy

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from hf_moe_lmc import align
from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.alignment import apply_symmetries
from hf_moe_lmc.connectivity import BorrowedWeights, Curve, Path, calibrate, linear_path, measure, repaired_path
from hf_moe_lmc.connectivity.temperature import best_temperature
from hf_moe_lmc.matching import ExpertOrder
from hf_moe_lmc.symmetry import MoeSymmetry

from .cells import Cell
from .data import Data

METHODS: tuple[ExpertOrder, ...] = ("units", "gate", "gram", "joint", "auto")
Symmetries = Mapping[str, MoeSymmetry]


class Pair:
    """Two endpoints of a cell, and what their paths are evaluated with.

    Args:
        cell: says how.
        reference, other: the endpoints.
        sources: all are evaluated on.
    """

    def __init__(self, cell: Cell, reference: PreTrainedModel, other: PreTrainedModel, sources: Mapping[str, Data]):
        self.cell, self.reference, self.other = cell, reference, other
        self.specs = alignable_layers(reference)
        self.moe = [spec for spec in self.specs if spec.router]
        self.weights = BorrowedWeights(deepcopy(reference))
        self.ends = reference.state_dict(), other.state_dict()
        self.calibration = [batch for data in sources.values() for batch in data.calibration]
        self.test = {name: data.test for name, data in sources.items()}
        self.points = tuple(np.linspace(0, 1, cell.points).tolist())
        self.accelerator = Accelerator(cpu=True)
        self.found = {method: align(reference, other, method).symmetries for method in METHODS}
        self._first: dict[str, Curve] = {}

    def paths(self, seed: int) -> dict[str, Path]:
        """All methods and controls by name; `seed` draws the random element."""
        a, b = self.ends
        generator = torch.Generator().manual_seed(seed)
        drawn = {
            spec.name: spec.group.random_derangement(*spec.read(b).symmetry_shape, generator=generator)
            for spec in self.moe
        }
        paths = {
            "naive": linear_path(a, b),
            "naive + rescale": self.rescaled(b),
            "naive + norms": repaired_path(a, b, self.specs, ["norms"]),
            "random": linear_path(a, self.moved(drawn)),
        }
        for method, symmetries in self.found.items():
            # Methods that agree share a path, which is evaluated once.
            twin = next((name for name in METHODS if name in paths and _same(self.found[name], symmetries)), None)
            paths[method] = paths[twin] if twin else linear_path(a, self.moved(symmetries))
        aligned = self.moved(self.found["auto"])
        paths["auto + norms"] = repaired_path(a, aligned, self.specs, ["norms"])
        paths["auto + rescale"] = self.rescaled(aligned)
        return paths

    def rescaled(self, other: Mapping[str, Tensor]) -> Path:
        """The line to `other` with the outputs of all experts rescaled on calibration data."""
        line = linear_path(self.ends[0], other)
        return repaired_path(
            self.ends[0],
            other,
            self.moe,
            ["rescale"],
            lambda t: calibrate(self.weights, line(t), self.moe, self.calibration),
        )

    def moved(self, symmetries: Symmetries) -> dict[str, Tensor]:
        """The other endpoint with the layers of `symmetries` rewritten."""
        return apply_symmetries(self.ends[1], [spec for spec in self.specs if spec.name in symmetries], symmetries)

    def curve(self, path: Path, source: str) -> Curve:
        """Loss and accuracy along `path` on the test set of `source`; the ends, the same of all paths, are kept."""
        found = measure(
            self.weights,
            path,
            self.points,
            self.test[source],
            self.accelerator,
            self.cell.name,
            temperature=self._temperature if self.cell.temperature else None,
            same_ends=self._first.get(source),
        )
        self._first.setdefault(source, found)
        return found

    def _temperature(self) -> float:
        # One number is fitted, and the fit costs more than an evaluation: one batch suffices.
        return best_temperature(self.weights.model, self.calibration[:1], self.accelerator)


def _same(first: Symmetries, second: Symmetries) -> bool:
    return all((first[name] @ second[name].inverse()).is_identity for name in first)
