"""One run of the command line: parse, run one command, and turn every failure into one line and an exit code."""

import json
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from hf_moe_lmc.errors import BadInputError

from .failures import BROKEN_PIPE, INTERRUPTED, describe_failure
from .parser import command_line
from .results import RED, YELLOW, CommandResult, coloured


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    Errors are one line on standard error; `--debug` adds the traceback.
    """
    root = command_line()
    if not (sys.argv[1:] if arguments is None else arguments):
        root.print_help()
        return 0
    options = root.parse_args(arguments)
    try:
        with (
            _libraries(options.verbose, options.quiet),
            _warnings_shown(),
            _threads(options.threads),
            _terminated_like_interrupted(),
        ):
            _import(options.imports)
            _meet()
            result: CommandResult | None = options.run(options)
            if result and options.json:
                sys.stdout.write(json.dumps(result.document, indent=2) + "\n")
            elif result:
                sys.stdout.write(result.text)
            sys.stdout.flush()
            return result.code if result else 0
    except KeyboardInterrupt:
        sys.unraisablehook = lambda _: None  # of what was being made when the signal came, such as a progress bar
        sys.stderr.write("interrupted; run the same command again to go on\n")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has left (`| head`). Nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        message, code = describe_failure(error)
        sys.stderr.write(f"{coloured('error:', RED, sys.stderr)} {message}\n")
        return code


def _import(modules: Sequence[str]) -> None:
    """Import modules of the user's own, from the current folder or installed.

    Raises:
        BadInputError: there is no such module, or it fails.
    """
    if modules:
        sys.path.insert(0, os.getcwd())
    for name in modules:
        try:
            import_module(name)
        except Exception as error:
            raise BadInputError(f"the module {name} cannot be imported: {type(error).__name__}: {error}") from error


def _meet() -> None:
    """Wait for the other processes of the job, if there are any: later, one may have a long download before it."""
    if "WORLD_SIZE" in os.environ:
        from hf_moe_lmc.alignment import processes

        processes()


@contextmanager
def _libraries(verbose: bool, quiet: bool) -> Iterator[None]:
    """Without the log lines and warnings by which the libraries address programmers, unless these are wanted.

    With `quiet` without progress, too.
    """
    # Read when the libraries are imported.
    for library in ("TRANSFORMERS", "HF_HUB", "DATASETS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "info" if verbose else "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries; ours become lines
    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    # Read when torch is imported: its threads then do not take cores while they wait, which others may need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with warnings.catch_warnings():
        if not sys.warnoptions and not verbose:
            warnings.simplefilter("ignore")
        yield


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """With our own warnings on standard error, whatever flags are given."""
    handler, logger = logging.StreamHandler(sys.stderr), logging.getLogger("hf_moe_lmc")
    handler.setFormatter(logging.Formatter(f"{coloured('warning:', YELLOW, sys.stderr)} %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """With so many threads, or workers, where a number is given; see `hf_moe_lmc.workers`."""
    if number is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as SIGINT does, so that commands clean up after both."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
