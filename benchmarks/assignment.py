"""Linear assignment: ours against scipy and plain lapx, side by side, on similarities such as units of experts have.

python -m benchmarks.assignment [--full] [--output FOLDER]

Writes assignment.json and assignment.md: medians of CPU seconds of one thread, and their ratio to scipy's. All solvers
get the same float32 matrix; ours attaches prices that prove its answer, whose gap `certify` computes. The package
torch-linear-assignment is left out: on a CPU it calls scipy in a loop (its `batch_linear_assignment_cpu`).
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from huggingface_hub.utils import tqdm
from lap import lapjvh
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_moe_lmc.matching import certify, solve_assignment

from .report import FOLDER, report

SIZES = (64, 128, 256, 768, 1024, 1408, 2048, 4096)
FULL_SIZES = (*SIZES, 8192, 14336)
CASES = (
    "independent",
    "independent, norms spread",
    "half aligned, norms spread",
    "siblings, noise 5 %",
    "siblings, noise 50 %",
    "heavy columns",
)
FORMATS = {
    "n": "",
    "case": "",
    "scipy": ".4f",
    "lapx": ".4f",
    "ours": ".4f",
    "certify": ".4f",
    "scipy / ours": ".1f",
    "scipy / lapx": ".1f",
    "lacking": ".0e",
    "gap": ".0e",
    "solver": "",
}


def similarity(case: str, n: int, seed: int) -> Tensor:
    """Rows of A times rows of B with n / 2 features; "spread" norms are log-normal, 0.3 (0.6 for heavy columns)."""
    generator, features = torch.Generator().manual_seed(seed), n // 2

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    a, b, order = draw(n, features), draw(n, features), torch.randperm(n, generator=generator)
    if "spread" in case or "siblings" in case:
        a *= (0.3 * draw(n, 1)).exp()
    scale = a.norm(dim=1, keepdim=True) / features**0.5
    if "half" in case:
        half = n // 2
        b[:half] = a[:half] + 0.05 * scale[:half] * draw(half, features)
    elif "siblings" in case:
        b = a + float(case.split()[-2]) / 100 * scale * draw(n, features)
    elif "heavy" in case:
        b *= (0.6 * draw(n, 1)).exp()
    return a @ b[order].T / features


def cpu_seconds(function: Callable[[], object], repeats: int) -> float:
    """Median CPU time of this process, all its threads."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return median(times)


def measure(case: str, n: int, seeds: int) -> dict[str, object]:
    """One row of the table: medians over `seeds` instances, the worst of objective and gap."""
    repeats = 50 if n <= 256 else 5 if n <= 1408 else 1
    rows = []
    for seed in range(seeds):
        matrix = similarity(case, n, seed)
        best = linear_sum_assignment(matrix.numpy(), maximize=True)
        optimum = matrix.double().numpy()[best].sum().item()
        found = solve_assignment(matrix)
        rows.append(
            {
                "scipy": cpu_seconds(lambda m=matrix: linear_sum_assignment(m.numpy(), maximize=True), repeats),
                "lapx": cpu_seconds(lambda m=matrix: lapjvh((-m).numpy()), repeats),
                "ours": cpu_seconds(lambda m=matrix: solve_assignment(m), repeats),
                "certify": cpu_seconds(lambda m=matrix, f=found: certify(f, m), repeats),
                "lacking": (optimum - found.objective) / abs(optimum),
                "gap": certify(found, matrix) / abs(optimum),
                "solver": found.solver,
            }
        )
    medians = {name: median(row[name] for row in rows) for name in ("scipy", "lapx", "ours", "certify")}
    ratios = {"scipy / ours": medians["scipy"] / medians["ours"], "scipy / lapx": medians["scipy"] / medians["lapx"]}
    worst = {name: max(row[name] for row in rows) for name in ("lacking", "gap")}
    return {"n": n, "case": case, **medians, **ratios, **worst, "solver": rows[0]["solver"]}


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="up to n = 14336: about an hour")
    parser.add_argument("--seeds", type=int, default=3, help="instances per row")
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = [(case, n) for n in (FULL_SIZES if arguments.full else SIZES) for case in CASES]
    rows = [measure(case, n, arguments.seeds) for case, n in tqdm(cases, desc="assignments")]
    report("assignment", rows, FORMATS, arguments.output)


if __name__ == "__main__":
    main()
