import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_job(processes: int) -> list[list]:
    """What every process of a real job printed: [processes, losses, accuracies]."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "tests.connectivity.path_job"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def test_two_processes_give_the_figures_of_one():
    """13 examples in batches of 2: the processes get unequal shares, and one example is padding."""
    (one,), two = run_job(1), run_job(2)
    assert len(two) == 2
    assert two[0] == two[1]
    assert (one[0], two[0][0]) == (1, 2)
    assert two[0][1] == pytest.approx(one[1], rel=1e-6)
    assert two[0][2] == one[2]
