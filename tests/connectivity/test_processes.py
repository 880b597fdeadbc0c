import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.connectivity import finetuned

ROOT = Path(__file__).parents[2]
FAMILIES = ("mixtral", "deepseek_v3", finetuned.IMAGES)


def run_job(processes: int, folder: Path) -> dict[str, dict]:
    """What the main process of a real job printed: family -> report."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [
        sys.executable,
        *(launcher if processes > 1 else []),
        "-m",
        "tests.connectivity.path_job",
        str(folder),
        *FAMILIES,
    ]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [found[:2] for found in printed] == [[processes, family] for family in FAMILIES]
    return {family: report for _, family, report in printed}


def figures(value: object, name: str = "") -> dict[str, object]:
    """All leaves of a report, by their path in it."""
    if isinstance(value, dict):
        return {key: leaf for k, v in value.items() for key, leaf in figures(v, f"{name}/{k}").items()}
    if isinstance(value, list):
        return {key: leaf for i, v in enumerate(value) for key, leaf in figures(v, f"{name}/{i}").items()}
    return {name: value}


def test_two_processes_give_the_figures_of_one(tmp_path):
    """Losses, barriers, intervals, routing, metrics and the chosen repair; the mean of means would be off."""
    for family in FAMILIES:
        for end, model in zip("ab", finetuned.pair(family), strict=True):
            model.save_pretrained(tmp_path / f"{family}-{end}")
    one, two = run_job(1, tmp_path), run_job(2, tmp_path)
    for family in FAMILIES:
        expected, found = figures(one[family]), figures(two[family])
        assert expected.keys() == found.keys()
        assert len(expected) > 100
        for name, value in expected.items():
            close = pytest.approx(value, rel=1e-6, abs=1e-6) if isinstance(value, float) else value
            assert found[name] == close, (family, name)
