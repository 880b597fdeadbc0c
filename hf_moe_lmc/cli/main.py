"""One run of the command line: parse, run one command, and turn whatever goes wrong into one line and an exit code."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from .failures import BROKEN_PIPE, INTERRUPTED, describe_failure
from .parser import parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    Errors are one line on standard error; `--debug` adds the traceback.
    """
    options = parser().parse_args(arguments)
    try:
        with _quiet_libraries(), _terminated_like_interrupted():
            code = options.run(options)
            sys.stdout.flush()
            return code
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
        sys.stderr.write(f"error: {message}\n")
        return code


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Without the log lines and warnings by which the libraries address programmers, not users of commands."""
    # Read when the libraries are imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as SIGINT does, so that commands clean up after both."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
