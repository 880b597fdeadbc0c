"""Seconds that a long run takes, from what it needs and a short measurement of this machine."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path

import numpy as np
import torch
import xxhash

from hf_moe_lmc.checkpoints import max_abs, tensor_bytes
from hf_moe_lmc.matching import align_layers
from hf_moe_lmc.merging import repaired_layer
from hf_moe_lmc.moe import ExpertBank, MoeLayer, Router, SymmetryGroup, act
from hf_moe_lmc.symmetry import MoeSymmetry
from hf_moe_lmc.workers import each, one_thread_per_operation

from .plan import Plan

PROBE_BYTES = 2**25
SHAPES = ((4, 256, 2048), (2, 3072, 64), (8, 128, 64))  # E, F, H: many weights, many pairs of units, many experts
RUNS = 2


@dataclass(frozen=True)
class Machine:
    """Wall seconds that one process takes here, with its threads.

    Args:
        matched: a byte of a layer that is matched.
        unit_pairs: a pair of units of one expert.
        experts: an expert that is matched.
        averaged: a byte that is averaged, or reordered.
        reading, writing: a byte, from where the inputs are, and until it is on the disk of the output.
    """

    matched: float
    unit_pairs: float
    experts: float
    averaged: float
    reading: float
    writing: float

    @classmethod
    def measured(cls, source: str | Path | None, folder: str | Path | None) -> "Machine":
        """Match siblings of three shapes, average a pair, read and write 32 MiB: half a second, once in a process.

        Args:
            source: a file that will be read; without, reading is free.
            folder: where will be written; without, writing is free.
        """
        reading = _seconds(lambda: _read(Path(source))) / _read(Path(source)) if source else 0.0
        writing = _seconds(lambda: _write(Path(folder))) / PROBE_BYTES if folder else 0.0
        return cls(*_computing(torch.get_num_threads()), reading, writing)

    def seconds(self, plan: Plan, processes: int = 1) -> float:
        """By so many processes, each with the cores that this one has: they divide the layers, and share the disk."""
        compute = (
            self.matched * plan.matched
            + self.unit_pairs * plan.unit_pairs
            + self.experts * plan.experts
            + self.averaged * plan.averaged
        )
        share = ceil(plan.layers / processes) / max(plan.layers, 1)
        # What was written is read again.
        return share * compute + self.reading * (plan.read + plan.written) + self.writing * plan.written


@cache
def _computing(threads: int) -> tuple[float, float, float, float]:
    """`matched`, `unit_pairs`, `experts` and `averaged` of `Machine`."""
    pairs = [_siblings(max(experts, threads), units, hidden) for experts, units, hidden in SHAPES]
    needs = np.array([_needs(reference) for reference, _ in pairs])
    with one_thread_per_operation():
        times = [_seconds(lambda pair=pair: _match(*pair)) for pair in pairs]
        averaged = _seconds(lambda: _average(*pairs[0])) / needs[0, 0].item()
    matched, unit_pairs, experts = np.linalg.solve(needs, times).clip(min=0).tolist()
    return matched, unit_pairs, experts, averaged


def _siblings(experts: int, units: int, hidden: int) -> tuple[MoeLayer, MoeLayer]:
    """A layer, and one near to it in another order."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.bfloat16)

    up, gate, down = draw(experts, units, hidden), draw(experts, units, hidden), draw(experts, hidden, units)
    group = SymmetryGroup(router_translation=True, unit_signs=True)
    layer = MoeLayer(Router(draw(experts, hidden)), ExpertBank(up, down, gate), group=group)
    near = {name: tensor + 0.02 * draw(*tensor.shape) for name, tensor in layer.tensors().items()}
    symmetry = group.random_derangement(*layer.symmetry_shape, generator=generator)
    return layer, act(symmetry, layer.with_tensors(near))


def _needs(layer: MoeLayer) -> tuple[int, int, int]:
    """Bytes of the pair, pairs of units, experts."""
    experts, units = layer.experts.num_experts, layer.experts.num_units
    return 2 * sum(tensor.nbytes for tensor in layer.tensors().values()), experts * units**2, experts


def _match(reference: MoeLayer, other: MoeLayer) -> None:
    for layer in (reference, other):
        each(_checked, layer.tensors().values())
    align_layers(reference, other)


def _average(reference: MoeLayer, other: MoeLayer) -> None:
    moved = act(MoeSymmetry.identity(*other.symmetry_shape), other)
    for layer in (reference, other):
        each(_checked, layer.tensors().values())
    merged = repaired_layer([reference, moved], (0.5, 0.5)).to(torch.bfloat16).tensors().values()
    for _ in range(2):  # written, and read again
        each(_checked, merged)


def _checked(tensor: torch.Tensor) -> tuple[float, str]:
    return max_abs(tensor), xxhash.xxh3_128_hexdigest(tensor_bytes(tensor.contiguous()))


def _read(file: Path) -> int:
    with file.open("rb", buffering=0) as opened:
        return len(opened.read(PROBE_BYTES))


def _write(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder, buffering=0) as opened:
        opened.write(bytes(PROBE_BYTES))
        os.fsync(opened.fileno())


def _seconds(run: Callable[[], object]) -> float:
    """Of the fastest of some runs: the first one warms up."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
