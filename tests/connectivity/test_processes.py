import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_job(processes: int) -> list[list]:
    """What every process of a real job printed: [processes, report]."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "tests.connectivity.path_job", "qwen2_moe"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def figures(value: object, name: str = "") -> dict[str, object]:
    """All leaves of a report, by their path in it."""
    if isinstance(value, dict):
        return {key: leaf for k, v in value.items() for key, leaf in figures(v, f"{name}/{k}").items()}
    if isinstance(value, list):
        return {key: leaf for i, v in enumerate(value) for key, leaf in figures(v, f"{name}/{i}").items()}
    return {name: value}


def test_two_processes_give_the_figures_of_one():
    """Losses, barriers, intervals, routing and the chosen repair; the mean of means would be off."""
    (one,), two = run_job(1), run_job(2)
    assert len(two) == 2
    assert two[0] == two[1]
    assert (one[0], two[0][0]) == (1, 2)
    expected, found = figures(one[1]), figures(two[0][1])
    assert expected.keys() == found.keys()
    assert len(expected) > 300
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value, rel=1e-6, abs=1e-6) if isinstance(value, float) else value), name
