"""Merging two 2 GB checkpoints: mergekit's plain linear merge beside `hf-moe-lmc merge`; CPU time, memory, exactness.

python -m benchmarks.merge_vs_mergekit --mergekit PATH_OF_mergekit-yaml [--pair FOLDER] [--json FILE]

mergekit lives in an environment of its own (`python -m venv mk && mk/bin/pip install mergekit==0.1.5`). The runs come
one after the other: with one thread each, with as many as there are cores, and by two processes of one thread. In
brackets stands the ratio to mergekit with as many threads, or of two processes to one, and what it should be at most.
With `--pair`, FOLDER/a and FOLDER/b are merged, else new ones of `benchmarks.pair`. Exits with 1 if our output is not
that of the naive lines in `reference_merge`, the same bytes by every way. Takes 20 GB of disk.
"""

import argparse
import filecmp
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from hf_moe_lmc import Alignment
from hf_moe_lmc.adapters import alignable_layers
from hf_moe_lmc.symmetry import MoeSymmetry

OURS = [sys.executable, "-m", "hf_moe_lmc"]
TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *OURS[1:]]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Cost:
    """What one process took: seconds, and bytes at its peak."""

    name: str
    cpu: float
    wall: float
    peak_memory: int


@dataclass(frozen=True)
class Ratio:
    """One run beside another, and the most that its CPU s, wall s and peak memory should be of that one's."""

    cost: Cost
    base: Cost
    most: tuple[float | None, float | None, float | None] = (None, None, None)


def measure(name: str, command: list[str], **environment: str) -> Cost:
    """Run `command` and wait for it."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env=os.environ | ONE_THREAD | environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    shown = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} failed:\n{shown[-2000:]}")
    return Cost(name, used.ru_utime + used.ru_stime, time.perf_counter() - start, used.ru_maxrss * 1024)


def mergekit_configuration(pair: Path) -> str:
    """The average of both checkpoints."""
    models = [{"model": str(pair / name), "parameters": {"weight": 0.5}} for name in ("a", "b")]
    return json.dumps({"models": models, "merge_method": "linear", "dtype": "bfloat16"})


def reference_merge(pair: Path, alignment: Alignment) -> Iterator[tuple[str, Tensor]]:
    """Module name -> tensor of the merge at t = 1/2, as plain as it can be written for Mixtral, in memory."""
    a, b = (AutoModelForCausalLM.from_pretrained(pair / name, dtype=torch.bfloat16) for name in ("a", "b"))
    other = b.state_dict()
    for layer in alignable_layers(b):
        permute(layer.name, other, alignment.symmetries[layer.name])
    for name, tensor in a.state_dict().items():
        yield name, ((tensor.float() + other[name].float()) / 2).bfloat16()


def permute(layer: str, tensors: dict[str, Tensor], symmetry: MoeSymmetry) -> None:
    """Reorder experts, router rows and units of one Mixtral layer, and flip the signs of units."""
    experts, units, signs = symmetry.experts.index, symmetry.units.permutation.index, symmetry.units.signs
    router, gate_up, down = (f"{layer}.{name}" for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj"))
    tensors[router] = tensors[router][experts]
    gate, up = tensors[gate_up][experts].chunk(2, dim=1)
    rows = units[:, :, None].expand(gate.shape)
    tensors[gate_up] = torch.cat([gate.gather(1, rows), up.gather(1, rows) * signs[:, :, None]], dim=1)
    columns = units[:, None, :].expand(tensors[down].shape)
    tensors[down] = tensors[down][experts].gather(2, columns) * signs[:, None, :]


def differing(pair: Path, alignment: Path, output: Path) -> list[str]:
    """Names of the tensors of `output` that are not those of the reference merge, bit for bit."""
    merged = AutoModelForCausalLM.from_pretrained(output, dtype=torch.bfloat16).state_dict()
    reference = reference_merge(pair, Alignment.from_pretrained(alignment))
    return [name for name, tensor in reference if not torch.equal(tensor, merged.pop(name))] + list(merged)


def machine() -> dict[str, str | int]:
    """Where and with what this was measured."""
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {
        "processor": model.partition(": ")[2],
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        **{package: version(package) for package in ("hf_moe_lmc", "torch", "transformers", "safetensors")},
    }


def mergekit_version(mergekit: Path) -> str:
    """Version in the environment of `mergekit`."""
    script = "from importlib.metadata import version; print(version('mergekit'), version('torch'))"
    done = subprocess.run([mergekit.with_name("python"), "-c", script], capture_output=True, text=True, check=True)
    return "mergekit {}, torch {}".format(*done.stdout.split())


def table(ratios: list[Ratio]) -> str:
    """Markdown; in brackets the ratio to the other run, and its bound."""
    lines = ["| | CPU s | wall s | peak memory, GB |", "|---|---|---|---|"]
    for ratio in ratios:
        cells = [ratio.cost.name]
        for field, unit, most in zip(("cpu", "wall", "peak_memory"), (1, 1, 1e9), ratio.most, strict=True):
            value, bound = getattr(ratio.cost, field), f", at most {most}" if most else ""
            cells.append(f"{value / unit:.2f} ({value / getattr(ratio.base, field):.2f}{bound})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compare(mergekit: Path, pair: Path, work: Path) -> tuple[list[Ratio], list[str]]:
    """Costs of all runs; names of our tensors that are wrong."""
    sides = [str(pair / "a"), str(pair / "b")]
    (work / "linear.yml").write_text(mergekit_configuration(pair))
    options = ["--no-write-model-card", "--no-copy-tokenizer"]  # the pair has no tokenizer, and no network is needed
    ratios, written, alone = [], [], dict[str, Cost]()
    cores = len(os.sched_getaffinity(0))

    def run(name: str, launcher: list[str], command: str, *arguments: str, threads: int) -> Cost:
        written.append(work / str(len(written)))
        given = [*launcher, command, *sides, *arguments, "-o", str(written[-1])]
        return measure(f"{command} {name}", given, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))

    aligned: tuple[str, ...] = ()
    for threads in dict.fromkeys((1, cores)):
        name, count = f"mergekit, linear, nothing aligned, threads: {threads}", str(threads)
        command = [str(mergekit), str(work / "linear.yml"), str(work / f"mk-{threads}"), *options]
        peer = measure(name, command, PYTHONPATH="", OMP_NUM_THREADS=count, MKL_NUM_THREADS=count)
        align = run(f"threads: {threads}", OURS, "align", threads=threads)
        aligned = aligned or ("--alignment", str(written[-1]))
        given = run(f"--alignment, threads: {threads}", OURS, "merge", *aligned, threads=threads)
        first = run(f"aligning first, threads: {threads}", OURS, "merge", threads=threads)
        alone = alone or {"align": align, "merge": first}
        bounds = (0.45, 0.35, 0.28), (0.75, 0.55, 0.28)
        ratios += [Ratio(peer, peer), Ratio(align, peer), Ratio(given, peer, bounds[0]), Ratio(first, peer, bounds[1])]
    for command, base in alone.items():
        two = run("by two processes", TWO_PROCESSES, command, threads=1)
        ratios.append(Ratio(two, base, (None, 0.6, None)))
    # Last, for the same reason that the pair is not written here.
    first, *others = [folder for folder in written if (folder / "config.json").exists()]
    wrong = differing(pair, Path(aligned[1]), first)
    for file in sorted(first.glob("*.safetensors")):
        same = [filecmp.cmp(file, folder / file.name, shallow=False) for folder in others]
        wrong += [] if all(same) else [f"{file.name}: not the same bytes in every merge"]
    return ratios, wrong


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", type=Path, default=os.environ.get("MERGEKIT_YAML"), help="or $MERGEKIT_YAML")
    parser.add_argument("--pair", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.mergekit:
        parser.error("give --mergekit")
    with tempfile.TemporaryDirectory(dir=options.pair) as folder:
        work = Path(folder)
        if not options.pair:  # not here: the peak memory of a process counts that of the process which started it
            subprocess.run([sys.executable, "-m", "benchmarks.pair", work], check=True)
        ratios, wrong = compare(Path(options.mergekit), options.pair or work, work)
    found = {
        "machine": machine() | {"peer": mergekit_version(Path(options.mergekit))},
        "ratios": list(map(asdict, ratios)),
    }
    found["wrong_tensors"] = wrong
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    sys.stdout.write(f"{table(ratios)}\n\n{json.dumps(found['machine'])}\n")
    sys.stdout.write(f"tensors that differ from a naive merge in memory: {wrong or 'none'}\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
