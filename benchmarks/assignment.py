"""Linear assignment: ours against scipy and plain lapx, side by side, on similarities such as units of experts have.

python -m benchmarks.assignment [--full] [--output FOLDER]

Writes assignment.json and assignment.md: CPU milliseconds of one thread, medians of runs that take turns, and their
ratio to scipy's. All get the same float32 tensor. "ours" is `solve_assignment`, "in a batch" is `solve_assignments` of
64, per matrix; "scipy" brings the same answer, columns and objective; "bare scipy" and "lapx" are the solver's call
alone. "lacking" is how far the objective is below scipy's, and "gap" how far the bound of `certify` is above ours, both
relative, the worst of all instances; "certify" is what that takes. The package torch-linear-assignment is left out: on
a CPU it calls scipy in a loop (its `batch_linear_assignment_cpu`).
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median

import torch
from huggingface_hub.utils import tqdm
from lap import lapjvh
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_moe_lmc.matching import certify, solve_assignment, solve_assignments

from .report import FOLDER, report

SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
FULL_SIZES = (*SIZES, 8192, 14336)
PLAIN_UP_TO = 8192  # plain lapx; beyond, it takes as long as scipy
SMALL, BATCH = 256, 64
TIMED = ("bare scipy", "scipy", "lapx", "ours", "in a batch", "certify")
COMPARED = ("ours", "lapx", "in a batch")
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
    "bare scipy": ".3g",
    "scipy": ".3g",
    "lapx": ".3g",
    "ours": ".3g",
    "in a batch": ".3g",
    "certify": ".3g",
    "scipy / ours": ".2g",
    "scipy / lapx": ".2g",
    "scipy / in a batch": ".2g",
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


def solve_by_scipy(similarity: Tensor) -> tuple[Tensor, float]:
    """Columns and objective, as scipy's documentation has it."""
    matrix = similarity.numpy()
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    return torch.from_numpy(columns), matrix[rows, columns].sum()


def cpu_seconds(function: Callable[[], object], calls: int = 1) -> float:
    """CPU time of one call, all threads of this process; the mean of several."""
    start = time.process_time()
    for _ in range(calls):
        function()
    return (time.process_time() - start) / calls


def measure(case: str, n: int, seeds: int) -> dict[str, object]:
    """One row of the table: medians over instances and runs, the worst of objective and gap."""
    runs, calls = 15 if n <= 512 else 5 if n < 2048 else 1, 1 + 20_000 // (100 + n * n)
    times: dict[str, list[float]] = defaultdict(list)
    worst = {"lacking": 0.0, "gap": 0.0}
    for seed in range(seeds if n < 2048 else 1):
        matrix = similarity(case, n, seed)
        found, answers = solve_assignment(matrix), {}
        solvers: dict[str, Callable[[], object]] = {
            "scipy": lambda m=matrix, a=answers: a.update(scipy=solve_by_scipy(m)),
            "ours": lambda m=matrix: solve_assignment(m),
            "certify": lambda m=matrix, a=answers, f=found: a.update(gap=certify(f, m)),
        }
        if n <= PLAIN_UP_TO:
            solvers["lapx"] = lambda m=matrix: lapjvh((-m).numpy())
        if n <= SMALL:
            batch = matrix.expand(BATCH, n, n)
            solvers["bare scipy"] = lambda m=matrix: linear_sum_assignment(m.numpy(), maximize=True)
            solvers["in a batch"] = lambda b=batch: solve_assignments(b)
        for _, (name, solver) in product(range(runs), solvers.items()):
            seconds = cpu_seconds(solver, 1) / BATCH if name == "in a batch" else cpu_seconds(solver, calls)
            times[name].append(1000 * seconds)
        optimum = matrix.gather(1, answers["scipy"][0][:, None]).double().sum().item()
        worst["lacking"] = max(worst["lacking"], (optimum - found.objective) / abs(optimum))
        worst["gap"] = max(worst["gap"], answers["gap"] / abs(optimum))
    medians = {name: median(times[name]) if name in times else None for name in TIMED}
    ratios = {f"scipy / {name}": medians["scipy"] / taken for name in COMPARED if (taken := medians[name])}
    return dict.fromkeys(FORMATS) | {"n": n, "case": case} | medians | ratios | worst | {"solver": found.solver}


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="up to n = 14336: about half an hour")
    parser.add_argument("--seeds", type=int, default=3, help="instances per row; one from n = 2048 on")
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = [(case, n) for n in (FULL_SIZES if arguments.full else SIZES) for case in CASES]
    rows = [measure(case, n, arguments.seeds) for case, n in tqdm(cases, desc="assignments")]
    report("assignment", rows, FORMATS, arguments.output, "milliseconds")


if __name__ == "__main__":
    main()
