"""Seconds that a long run takes, from the bytes and operations that it needs and a short measurement of this machine."""

import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from hf_moe_lmc.matching import solve_assignment
from hf_moe_lmc.moe import MoeLayer
from hf_moe_lmc.workers import one_thread_per_operation

PROBE_BYTES = 2**25
PROBE_SIZE = 1024  # of matrices
GROWTH = 2.2  # exponent of an assignment's seconds in its size, measured from 2048 to 8192


@dataclass(frozen=True)
class Machine:
    """Rates of one core, and of the disks.

    Args:
        reading, writing: bytes a second, from where the inputs are and, until it is on the disk, to where the output will be.
        comparing: bytes a second of stored weights, subtracted and squared in float32.
        hashing: bytes a second, sha-256.
        product: floating-point operations a second, float32.
        assignment: unrelated units of `PROBE_SIZE` a second.
    """

    reading: float
    writing: float
    comparing: float
    hashing: float
    product: float
    assignment: float

    @classmethod
    def measured(cls, source: Path | None, folder: Path | None) -> "Machine":
        """The rates now, in less than a second.

        Args:
            source: a file that will be read; without, nothing is.
            folder: where will be written; without, nothing is.
        """
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(PROBE_SIZE, PROBE_SIZE, generator=generator) for _ in range(2))
        stored = [matrix.bfloat16() for matrix in (a, b)]
        content = bytes(PROBE_BYTES)

        def compare() -> None:
            for x, y in zip(*(matrix.split(32) for matrix in stored), strict=True):
                (x.float() - y.float()).square_().sum(dim=1).double().sum().item()

        with one_thread_per_operation():
            return cls(
                _read_rate(source) if source else math.inf,
                _write_rate(folder, content) if folder else math.inf,
                sum(matrix.nbytes for matrix in stored) / _seconds(compare),
                len(content) / _seconds(lambda: hashlib.sha256(content).digest()),
                2 * PROBE_SIZE**3 / _seconds(lambda: a @ b),
                1 / _seconds(lambda: solve_assignment(a)),
            )


@dataclass(frozen=True)
class Work:
    """What a run takes; the fields are counted in the units of `Machine`'s."""

    reading: float = 0.0
    writing: float = 0.0
    comparing: float = 0.0
    hashing: float = 0.0
    product: float = 0.0
    assignment: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Work)))

    def seconds(self, machine: Machine, cores: int) -> float:
        """On so many cores, whatever the number of processes; the disks are shared."""
        taken = {field.name: getattr(self, field.name) / getattr(machine, field.name) for field in fields(Work)}
        disks = taken.pop("reading") + taken.pop("writing")
        return disks + sum(taken.values()) / cores


def matching_work(layer: MoeLayer, nbytes: int, related: bool) -> Work:
    """Work of aligning one layer; siblings are proven from few coordinates, unrelated experts are all compared.

    Args:
        layer: any of the two; on the meta device.
        nbytes: of both, as they are stored.
        related: whether the models are siblings.
    """
    (experts, units, hidden), pairs = layer.experts.up_proj.shape, 0
    product = 2 * 33 * experts * units**2
    if not related:
        pairs = min(4 * experts, experts**2)
        product += pairs * 2 * 3 * units**2 * hidden + 6 * experts * units * hidden**2
    return Work(
        reading=nbytes,
        comparing=MATCHING_PASSES * nbytes,
        product=product,
        assignment=pairs * (units / PROBE_SIZE) ** GROWTH,
    )


def writing_work(read: int, written: int) -> Work:
    """Work of an average or of a rewrite; what is written is read again."""
    return Work(read + written, written, WRITING_PASSES * (read + written), written)


def duration(seconds: float) -> str:
    """Such as 40 s, 12 min or 3.5 h."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{max(1, round(seconds))} s"


def _seconds(run: Callable[[], object], runs: int = 3) -> float:
    """Processor time of the fastest run: what other processes take is not this one's."""
    times = []
    for _ in range(runs):
        start = time.thread_time()
        run()
        times.append(time.thread_time() - start)
    return max(min(times), 1e-9)


def _read_rate(file: Path) -> float:
    with file.open("rb", buffering=0) as opened:
        if hasattr(os, "posix_fadvise"):  # from the disk, not from memory
            os.posix_fadvise(opened.fileno(), 0, PROBE_BYTES, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        size = len(opened.read(PROBE_BYTES))
        return size / (time.perf_counter() - start)


def _write_rate(folder: Path, content: bytes) -> float:
    with tempfile.TemporaryFile(dir=folder, buffering=0) as opened:
        start = time.perf_counter()
        opened.write(content)
        os.fsync(opened.fileno())
        return len(content) / (time.perf_counter() - start)
