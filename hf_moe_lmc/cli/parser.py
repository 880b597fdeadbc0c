"""All commands and their options. Imports neither torch nor Transformers: `--help` answers at once."""

import argparse
from importlib.metadata import version
from typing import Any, NoReturn

from . import align, apply, card, demo, evaluate, inspect, merge, push, verify
from .failures import USAGE

COMMANDS = (inspect, align, apply, merge, evaluate, verify, card, push, demo)
"""Modules with `add_parser(commands)`, which sets the default `run`: a function from the options to the exit code."""

EXIT_CODES = """exit codes: 0 done, 1 unexpected error (verify: not equal), 2 usage, 3 bad input, 4 incompatible pair,
5 output or disk, 6 network or Hub, 130 interrupted"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which takes `--debug` before and after the command."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit with 2."""
        self.exit(USAGE, f"error: {message}; see '{self.prog} --help'\n")


def parser() -> Parser:
    """The parser of the whole command line."""
    root = Parser(
        prog="hf-moe-lmc",
        description="Align, merge and evaluate Mixture-of-Experts checkpoints of Hugging Face Transformers.",
        epilog=EXIT_CODES,
    )
    root.add_argument("--version", action="version", version=version("hf_moe_lmc"))
    root.set_defaults(debug=False)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return root
