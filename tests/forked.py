"""Real processes that begin at once: they are forked from a server that has imported everything."""

import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.preloaded"])


def start(function: Callable[..., Any], *args: Any) -> multiprocessing.Process:
    """A process that runs `function(*args)`, which exits with what it returns."""
    process = SERVER.Process(target=_run, args=(function, args))
    process.start()
    return process


def run_job(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], only: int | None = None
) -> list[int | None]:
    """Call `function(*own)` for each of the arguments in a process of one job, as `torchrun` does; the exit codes.

    With `only`, the other processes never begin.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, size = free.getsockname()[1], len(arguments)
    begun = [(index, own) for index, own in enumerate(arguments) if only in (None, index)]
    started = [start(_as_rank, index, size, port, function, own) for index, own in begun]
    for process in started:
        process.join(600)
    return [process.exitcode for process in started]


def _as_rank(index: int, size: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    if size > 1:
        ranks = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in ranks.items()}
    return function(*args)


def _run(function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what they start in the background ignore it
    sys.exit(function(*args))


def command(arguments: list[str], error: Path) -> int:
    """`hf-moe-lmc ARGUMENTS` with its messages in the file `error`; the exit code."""
    from hf_moe_lmc import cli

    with error.open("w") as sys.stderr, open(os.devnull, "w") as sys.stdout:
        return cli.main(arguments)


def fork(run: Callable[[], object]) -> int:
    """Call `run` in a copy of this process, and wait; the exit code, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
