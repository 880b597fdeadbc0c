"""Seconds until `hf-moe-lmc --help` has answered: the median of several processes.

python -m benchmarks.start_up [--runs 20]
"""

import argparse
import statistics
import subprocess
import sys
import time


def seconds(command: list[str]) -> float:
    """How long one process takes."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    for name, words in {
        "python -c pass": ["-c", "pass"],
        "hf-moe-lmc --help": ["-m", "hf_moe_lmc", "--help"],
        "hf-moe-lmc merge --help": ["-m", "hf_moe_lmc", "merge", "--help"],
    }.items():
        runs = [seconds([sys.executable, *words]) for _ in range(options.runs)]
        sys.stdout.write(f"{name:24} median {statistics.median(runs):.3f} s, most {max(runs):.3f} s\n")


if __name__ == "__main__":
    main()
