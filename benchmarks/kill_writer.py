"""A merge that is killed (kill -9) at random moments, again and again.

python -m benchmarks.kill_writer [--times 50] [--seed 0]

After every kill the output must be absent, or complete and byte for byte that of an undisturbed run; so must be the
output of the run that goes on. Exits with 1 if not.
"""

import argparse
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from transformers import MixtralConfig

from hf_moe_lmc.alignment import Alignment, align, merge_checkpoints

from .pair import write_pair

# Processes are forked from one that has imported everything, so that the kills meet the merge and not the imports.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["hf_moe_lmc.alignment", "transformers.models.mixtral.modeling_mixtral"])


def merge(folder: Path) -> None:
    """Merge into `folder`/out."""
    alignment = Alignment.from_pretrained(folder / "alignment")
    merge_checkpoints(folder / "a", folder / "b", folder / "out", alignment)


def run(folder: Path, limit: float | None = None) -> int:
    """Merge in a process of its own, killed after `limit` seconds; its exit code."""
    process = SERVER.Process(target=merge, args=(folder,))
    process.start()
    process.join(limit)
    process.kill()
    process.join()
    return process.exitcode or 0


def content(folder: Path) -> dict[str, bytes] | None:
    """File -> bytes; None for a folder that is absent."""
    files = sorted(folder.rglob("*"))
    return (
        {str(file.relative_to(folder)): file.read_bytes() for file in files if file.is_file()}
        if folder.exists()
        else None
    )


def steps_done(folder: Path) -> int:
    """Steps that the killed run has recorded."""
    journal = folder / ".out.hf_moe_lmc" / "journal.jsonl"
    return max(journal.read_bytes().count(b"\n") - 1, 0) if journal.exists() else 0


def kill_once(folder: Path, limit: float, expected: dict[str, bytes] | None) -> tuple[str, int]:
    """What a kill after `limit` seconds leaves: the state of the output, and the steps that need not be done again."""
    run(folder, limit)
    found, steps = content(folder / "out"), steps_done(folder)
    state = "absent" if found is None else "complete" if found == expected else "MIXED"
    if state == "absent":
        run(folder)
        if content(folder / "out") != expected:
            state = "RESUMED WRONGLY"
    shutil.rmtree(folder / "out", ignore_errors=True)
    return state, steps


def main() -> int:
    """Kill, check, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    config = MixtralConfig(
        vocab_size=2000, hidden_size=256, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=8,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        write_pair(folder, config)
        align(folder / "a", folder / "b").save_pretrained(folder / "alignment")
        run(folder)
        shutil.rmtree(folder / "out")
        start = time.perf_counter()
        run(folder)
        seconds = time.perf_counter() - start
        expected = content(folder / "out")
        shutil.rmtree(folder / "out")
        outcomes = Counter(kill_once(folder, draw.uniform(0, seconds), expected) for _ in range(options.times))
    for (state, steps), count in sorted(outcomes.items()):
        sys.stdout.write(f"{count:4} x output {state}, {steps} steps done\n")
    sys.stdout.write(json.dumps({"seconds": seconds, "bytes": sum(map(len, (expected or {}).values()))}) + "\n")
    return any(state.isupper() for state, _ in outcomes)


if __name__ == "__main__":
    sys.exit(main())
