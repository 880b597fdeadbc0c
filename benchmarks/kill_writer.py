"""A merge that is killed (kill -9) at random moments, again and again.

python -m benchmarks.kill_writer [--times 50] [--seed 0]

A moment is a step of the writing, which all are as likely, and a part of the time that its steps take in this very run.
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

from hf_moe_lmc import Alignment, align, aligner

from .pair import write_pair

POLL_SECONDS = 0.001

# Processes are forked from one that has imported everything, so that the kills meet the merge and not the imports.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["hf_moe_lmc.aligner", "transformers.models.mixtral.modeling_mixtral"])


def merge(folder: Path) -> None:
    """Merge into `folder`/out."""
    alignment = Alignment.from_pretrained(folder / "alignment")
    aligner.merge(folder / "a", folder / "b", alignment, output=folder / "out")


def run(folder: Path, stop_after: int | None = None, part: float = 0.0) -> int:
    """Merge in a process of its own; the number of steps that were seen done.

    Args:
        folder: of the pair, its alignment, and `out`.
        stop_after: kill the process so many steps after it has begun to write; None lets it end.
        part: of the mean time of this run's steps that passes until then, so that load does not matter.
    """
    process = SERVER.Process(target=merge, args=(folder,))
    process.start()
    start, done, journal = time.perf_counter(), 0, journal_of(folder)
    while process.is_alive():
        done = max(done, steps_done(folder))
        if stop_after is not None and journal.exists() and done >= stop_after:
            time.sleep(part * (time.perf_counter() - start) / (done + 1))
            process.kill()
        time.sleep(POLL_SECONDS)
    process.join()
    return done


def content(folder: Path) -> dict[str, bytes] | None:
    """File -> bytes; None for a folder that is absent."""
    files = sorted(folder.rglob("*"))
    return (
        {str(file.relative_to(folder)): file.read_bytes() for file in files if file.is_file()}
        if folder.exists()
        else None
    )


def journal_of(folder: Path) -> Path:
    """Where a merge says which of its steps are done; gone when the output is in place."""
    return folder / ".out.hf_moe_lmc" / "journal.jsonl"


def steps_done(folder: Path) -> int:
    """Steps that a run has recorded."""
    try:
        return max(journal_of(folder).read_bytes().count(b"\n") - 1, 0)
    except FileNotFoundError:
        return 0


def kill_once(folder: Path, stop_after: int, part: float, expected: dict[str, bytes] | None) -> tuple[str, int]:
    """What a kill leaves: the state of the output, and the steps that need not be done again."""
    run(folder, stop_after, part)
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
        steps = run(folder)
        expected = content(folder / "out")
        shutil.rmtree(folder / "out")
        moments = [(draw.randint(0, steps), draw.random()) for _ in range(options.times)]
        outcomes = Counter(kill_once(folder, *moment, expected) for moment in moments)
    for (state, done), count in sorted(outcomes.items()):
        sys.stdout.write(f"{count:4} x output {state}, {done} of {steps} steps done\n")
    sys.stdout.write(json.dumps({"bytes": sum(map(len, (expected or {}).values()))}) + "\n")
    return any(state.isupper() for state, _ in outcomes)


if __name__ == "__main__":
    sys.exit(main())
