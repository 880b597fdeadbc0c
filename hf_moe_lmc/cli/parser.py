"""All commands and their options. Imports neither torch nor Transformers: `--help` answers at once."""

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from . import align, apply, card, completion, demo, evaluate, inspect, merge, push, verify
from .failures import USAGE
from .settings_file import settings_file, take_settings

COMMANDS = (inspect, align, apply, merge, evaluate, verify, card, push, demo, completion)
"""Modules with `add_parser(commands)`, which sets the default `run`: a function from the options to an `Answer`."""

COMMON = {
    "--json": "print one JSON document",
    "--quiet": "no progress, and nothing but errors",
    "--verbose": "the log lines and warnings of the libraries, too",
    "--debug": "show the traceback of an error",
}
"""Flags that stand before or after the command."""

EXIT_CODES = """exit codes: 0 done, 1 unexpected error (verify: not equal), 2 usage, 3 bad input, 4 incompatible pair,
5 output or disk, 6 network or Hub, 130 interrupted"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which takes `COMMON` and `--config` wherever they stand."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        common = self.add_argument_group("common")
        for flag, meaning in COMMON.items():
            common.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=meaning)
        common.add_argument(
            "--config",
            metavar="FILE",
            type=Path,
            default=argparse.SUPPRESS,
            help="YAML file of arguments of the command, such as `t: [0.25, 0.5]`; what the command line says wins",
        )

    def parse_known_args(  # type: ignore[override]  (of an overload)
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As of the base class, once the file of settings has given the defaults."""
        file = settings_file(list(args or ()))
        if file and self._subparsers is None:
            try:
                take_settings(self, self._actions, file)
            except ValueError as error:
                self.error(str(error))
        return super().parse_known_args(args, namespace)

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
    root.set_defaults(**{flag.removeprefix("--"): False for flag in COMMON})
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return root
