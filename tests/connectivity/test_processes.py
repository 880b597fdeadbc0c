import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from tests.connectivity import path_job, siblings

ROOT = Path(__file__).parents[2]


def run_job(processes: int, folder: Path) -> dict[str, dict]:
    """What the main process of a real job printed: family -> report."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "tests.connectivity.path_job", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    (printed,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert printed[0] == processes
    return printed[1]


def figures(value: object, name: str = "") -> dict[str, object]:
    """All leaves of a report, by their path in it."""
    if isinstance(value, dict):
        return {key: leaf for k, v in value.items() for key, leaf in figures(v, f"{name}/{k}").items()}
    if isinstance(value, list):
        return {key: leaf for i, v in enumerate(value) for key, leaf in figures(v, f"{name}/{i}").items()}
    return {name: value}


def test_two_processes_give_the_figures_of_one(tmp_path):
    """Losses, barriers, intervals, routing, metrics and the chosen repair; the mean of means would be off."""
    for family in path_job.FAMILIES:
        for name, model in zip("ab", siblings.pair(family), strict=True):
            model.save_pretrained(tmp_path / f"{family}-{name}")
    two = run_job(2, tmp_path)
    for family in path_job.FAMILIES:
        one = path_job.report(tmp_path, family, Accelerator(cpu=True))
        expected, found = figures(json.loads(json.dumps(one))), figures(two[family])
        assert expected.keys() == found.keys()
        assert len(expected) > 100
        for name, value in expected.items():
            close = pytest.approx(value, rel=1e-6, abs=1e-6) if isinstance(value, float) else value
            assert found[name] == close, (family, name)
