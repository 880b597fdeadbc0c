"""Every command that writes, killed at random moments, again and again.

python -m benchmarks.kill_writer [--times 30] [--seed 0] [--jobs merge align ...] > benchmarks/results/kill_writer.md

A killed process is a copy of this one that dies of a timer of its own processor time, so the load of the machine does
not matter: half of the moments lie anywhere in the run, the other half in the last 50 ms of an undisturbed one. Of two
processes either dies, and the other must end within a minute. After every kill the output must be as before (absent, or
what is being replaced), or complete; the same command is then given again, and must end with the very bytes of an
undisturbed run (of plots, which hold dates, with the same files), or refuse an output that is complete. Nothing else is
left in the folder. Exits with 1 if not.
"""

import argparse
import contextlib
import os
import random
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import MixtralConfig
from transformers.utils import logging

from hf_moe_lmc import Alignment, aligner, apply, cli
from hf_moe_lmc.alignment import job as processes
from hf_moe_lmc.errors import OutputError

from .pair import write_pair

LAST_SECONDS = 0.05
SURVIVAL_SECONDS = 60  # of a process whose partner has died
CONFIG = MixtralConfig(
    vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, num_local_experts=4,
)  # fmt: skip
DONE, REFUSED, FAILED = 0, 3, 4  # of a copy of this process


@dataclass(frozen=True)
class Job:
    """A command.

    Args:
        run: writes `out` in a folder that holds two models, `a` and `b`, and the alignment of the second.
        replaces: whether there is an earlier output, which is to be replaced.
        compared: end of the names of the files whose bytes are compared.
        processes: 1, or 2 as under `torchrun`.
    """

    run: Callable[[Path], object]
    replaces: bool = False
    compared: tuple[str, ...] = ("",)
    processes: int = 1


def _merge(*others: str, t: object = None, repairs: tuple[str, ...] = (), overwrite: bool = False) -> Callable:
    def run(folder: Path) -> None:
        alignments = [Alignment.from_pretrained(folder / "alignment") for _ in others]
        paths = [folder / name for name in others]
        options = {"repairs": repairs, "overwrite": overwrite, "force": True}
        aligner.merge(folder / "a", paths, alignments, t, output=folder / "out", **options)

    return run


def _align(folder: Path) -> None:
    aligner.align(folder / "a", folder / "b", output=folder / "out")


def _apply(folder: Path) -> None:
    apply(Alignment.from_pretrained(folder / "alignment"), folder / "b", folder / "out")


def _evaluate(folder: Path) -> None:
    data = ["--dataset", str(folder / "rows"), "--calibration-examples", "0", "--batch-size", "4", "--length", "16"]
    what = ["--points", "3", "--variants", "naive", "--repair", "norms", "-o", str(folder / "out")]
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        code = cli.main(["evaluate", str(folder / "a"), str(folder / "b"), *data, *what])
    if code != 0:
        raise OutputError(f"exit code {code}") if code == OutputError.exit_code else RuntimeError(f"exit code {code}")


JOBS: dict[str, Job] = {
    "align": Job(_align),
    "apply": Job(_apply),
    "merge": Job(_merge("b")),
    "merge, three t": Job(_merge("b", t=(0.25, 0.5, 1.0))),
    "merge, repaired": Job(_merge("b", repairs=("norms", "gram"))),
    "merge, three models": Job(_merge("b", "b")),
    "merge, replacing": Job(_merge("b", t=0.3, overwrite=True), replaces=True),
    "align, two processes": Job(_align, processes=2),
    "merge, two processes": Job(_merge("b"), processes=2),
    "evaluate": Job(_evaluate, compared=("report.json", "report.md")),
}


def copy(job: Job, folder: Path, seconds: float | None = None, dying: int = 0) -> tuple[int, float]:
    """Run a job in a copy of this process, which dies after so many seconds of processor time.

    Args:
        job: of two processes the copy is the one of the number `dying`, and starts the other.

    Returns:
        its exit code, or minus the signal that ended it; the seconds of processor time that it took, if it was not
        killed.

    Raises:
        TimeoutError: another process of the job goes on.
    """
    reader, writer = os.pipe()  # held open by every process of the job
    if (child := os.fork()) == 0:
        if job.processes > 1:
            port = _free_port()
            other = os.fork()
            _join(dying if other else 1 - dying, port)
        if seconds is not None and (job.processes == 1 or other):
            signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which is to end at once
            signal.setitimer(signal.ITIMER_PROF, seconds)
        code = FAILED
        try:
            job.run(folder)
            code = DONE
        except OutputError:
            code = REFUSED
        except BaseException:
            if seconds is None:  # else the partner of one that was killed
                traceback.print_exc()
        if job.processes == 1 or other:
            os.write(writer, repr(time.process_time()).encode())
        os._exit(code)
    os.close(writer)
    code, used = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), b""
    while True:
        if not select.select([reader], [], [], SURVIVAL_SECONDS)[0]:
            raise TimeoutError
        if not (part := os.read(reader, 100)):
            break
        used += part
    os.close(reader)
    return code, float(used or "nan")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _join(number: int, port: int) -> None:
    """Be one of the two processes of a job."""
    PartialState._reset_state()  # this one has been alone
    job = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in job.items()}


def content(folder: Path, compared: tuple[str, ...] = ("",)) -> dict[str, bytes] | None:
    """File -> bytes, of those that are compared; None for a folder that is absent."""
    if not folder.exists():
        return None
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): f.read_bytes() if f.name.endswith(compared) else b"" for f in files}


def prepare(job: Job, folder: Path, earlier: Path) -> None:
    """Put the folder in the state in which the job finds it."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    if job.replaces:
        shutil.copytree(earlier, folder / "out")


def kill_once(
    job: Job, folder: Path, earlier: Path, seconds: float, dying: int, expected: dict[str, bytes]
) -> str | None:
    """Kill, give the command again; what was found, with "!" at the end if it must not be. None: it ended before."""
    prepare(job, folder, earlier)
    names, before = sorted(folder.iterdir()), content(folder / "out", job.compared)
    try:
        code, _ = copy(job, folder, seconds, dying)
    except TimeoutError:
        return "its partner goes on!"
    if code != -signal.SIGPROF:
        return None if code == DONE else f"ended by itself with {code}!"
    found = content(folder / "out", job.compared)
    complete = found is not None and found == expected
    state = "complete" if complete else "as before" if found == before else "absent"
    if found not in (before, expected, None):
        return "mixed!"
    if state == "as before" and sorted(folder.iterdir()) == names:
        state += ", nothing begun"
    for lock in folder.glob(".*.lock"):
        if not lock.stat().st_size:
            state += ", lock without a name"
            os.utime(lock, (0, 0))  # it lapses after ten seconds
    again, _ = copy(job, folder)
    if again != DONE and not (again == REFUSED and complete and not job.replaces):
        return f"{state}: ended with {again} when given again!"
    if content(folder / "out", job.compared) != expected:
        return f"{state}: ended differently!"
    left = set(folder.iterdir()) - {*names, folder / "out"}
    return f"{state}: {sorted(left)} is left!" if left else state


def main() -> int:
    """Kill, check, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30, help="kills of every job")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    processes.MEETING = timedelta(seconds=15)  # processes that are forked from one meet at once
    logging.set_verbosity_error()
    wrong = False
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path) / "work"
        folder.mkdir()
        write_pair(folder, CONFIG)
        write_rows(folder)
        aligner.align(folder / "a", folder / "b").save_pretrained(folder / "alignment")
        command = " ".join(["python -m benchmarks.kill_writer", *sys.argv[1:]])
        sys.stdout.write(
            f"`{command}`: kills, and how the output was found before the command, given again, mended it\n"
        )
        sys.stdout.write("\n| job | kills | output |\n| --- | ---: | --- |\n")
        for name in options.jobs:
            states = kill_often(JOBS[name], folder, Path(path) / "earlier", random.Random(options.seed), options.times)
            for state, count in sorted(states.items()):
                sys.stdout.write(f"| {name} | {count} | {state} |\n")
                wrong |= state.endswith("!")
            sys.stdout.flush()
    return wrong


def kill_often(job: Job, folder: Path, earlier: Path, draw: random.Random, times: int) -> Counter[str]:
    """What was found after so many kills."""
    job.run(folder)  # also imports and compiles what the copies then need not
    shutil.rmtree(earlier, ignore_errors=True)
    shutil.move(folder / "out", earlier)
    if job.replaces:
        JOBS["apply"].run(folder)
        shutil.rmtree(earlier)
        shutil.move(folder / "out", earlier)
    prepare(job, folder, earlier)
    code, seconds = copy(job, folder)
    expected = content(folder / "out", job.compared)
    assert code == DONE
    assert expected
    states = Counter[str]()
    while states.total() < times:
        first = 0.001 if draw.random() < 0.5 else seconds - LAST_SECONDS
        moment, dying = draw.uniform(max(first, 0.001), seconds), draw.randrange(job.processes)
        if state := kill_once(job, folder, earlier, moment, dying, expected):
            states[state] += 1
    shutil.rmtree(folder / "out", ignore_errors=True)
    return states


def write_rows(folder: Path) -> None:
    """A text, and a tokenizer for the models that reads it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    (folder / "rows").mkdir()
    (folder / "rows" / "text.txt").write_text("abcdefghijklmnop" * 40)
    words = Tokenizer(models.WordLevel({chr(97 + number): number for number in range(26)}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    for name in "ab":
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a").save_pretrained(folder / name)


if __name__ == "__main__":
    sys.exit(main())
