"""One pair of endpoints, its alignments, and the paths between them."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import lru_cache, partial

import numpy as np
import torch
from accelerate import Accelerator
from hf_moe_lmc.connectivity.auto_repair import choose_repairs
from hf_moe_lmc.connectivity.repairs import Repair
from torch import Tensor
from transformers import PreTrainedModel

from hf_moe_lmc import Alignment, align
from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.alignment import apply_symmetries
from hf_moe_lmc.connectivity import BorrowedWeights, Curve, Path, calibrate, linear_path, measure, repaired_path
from hf_moe_lmc.connectivity.evaluation import best_temperature
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
        self.found = {method: align(reference, other, method) for method in METHODS}
        self.repairs: tuple[Repair, ...] = ()
        self._first: dict[str, Curve] = {}

    def paths(self, seed: int) -> dict[str, Path]:
        """All methods and controls by name; `seed` draws the random element. Notes what "auto + repair" keeps."""
        a, b = self.ends
        generator = torch.Generator().manual_seed(seed)
        drawn = {
            spec.name: spec.group.random_derangement(*spec.read(b).symmetry_shape, generator=generator)
            for spec in self.moe
        }
        paths = {
            "naive": linear_path(a, b),
            "naive + rescale": self.repaired(b, ["rescale"]),
            "naive + norms": self.repaired(b, ["norms"]),
            "random": linear_path(a, self.moved(drawn)),
        }
        for method, alignment in self.found.items():
            # Methods that agree share a path, which is evaluated once.
            twin = next((name for name in METHODS if name in paths and _same(self.found[name], alignment)), None)
            paths[method] = paths[twin] if twin else linear_path(a, self.moved(alignment.symmetries))
        aligned = self.moved(self.found["auto"].symmetries)
        paths["auto + norms"] = self.repaired(aligned, ["norms"])
        paths["auto + rescale"] = self.repaired(aligned, ["rescale"])
        self.repairs, paths["auto + repair"] = self.chosen(aligned)
        return paths

    def repaired(
        self, other: Mapping[str, Tensor], repairs: Sequence[Repair], batches: Sequence[Mapping[str, Tensor]] = ()
    ) -> Path:
        """The line to `other` under `repairs`, calibrated on `batches`, by default on all calibration data."""
        line, batches = linear_path(self.ends[0], other), batches or self.calibration
        found = lru_cache(maxsize=1)(lambda t: calibrate(self.weights, line(t), self.moe, batches))
        return repaired_path(self.ends[0], other, self.specs, repairs, found)

    def chosen(self, other: Mapping[str, Tensor]) -> tuple[tuple[Repair, ...], Path]:
        """The repairs that held-out calibration data asks for, and the line to `other` under them."""
        repaired = partial(self.repaired, other, batches=self.calibration[::2])
        choice = choose_repairs(self.weights, repaired, self.calibration[1::2], self.accelerator)
        return choice.repairs, repaired(choice.repairs)

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
            same_endpoints=self._first.get(source),
        )
        self._first.setdefault(source, found)
        return found

    def _temperature(self) -> float:
        # One number is fitted, and the fit costs more than an evaluation: one batch suffices.
        return best_temperature(self.weights.model, self.calibration[:1], self.accelerator)


def _same(first: Alignment, second: Alignment) -> bool:
    return all(
        (symmetry @ second.symmetries[name].inverse()).is_identity for name, symmetry in first.symmetries.items()
    )
