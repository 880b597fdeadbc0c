"""Aligns and merges two checkpoints; `test_processes.py` runs it in one process and in several."""

import sys

from hf_moe_lmc import cli

if __name__ == "__main__":
    a, b, folder = sys.argv[1:]
    code = cli.main(["align", a, b, "-o", f"{folder}/alignment"])
    sys.exit(code or cli.main(["merge", a, b, "--force", "-o", f"{folder}/merged"]))
