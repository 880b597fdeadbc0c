"""All commands and their options. Imports neither torch nor Transformers: `--help` answers at once."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import takewhile
from typing import Any, NoReturn

from . import align, apply, card, compare, completion, demo, evaluate, inspect, merge, push, verify
from .arguments import at_least
from .config_file import settings_file, take_settings
from .failures import USAGE

COMMANDS = (inspect, compare, align, apply, merge, evaluate, verify, card, push, demo, completion)
"""Modules with `add_parser(commands)`, which sets the default `run`: a function from options to a `CommandResult`."""

COMMON = {
    "--json": "print one JSON document",
    "--quiet": "no progress on standard error, only the result and errors",
    "--verbose": "the log lines and warnings of the libraries, too",
    "--debug": "show the traceback of an error",
}
"""Flags that stand before or after the command."""

EPILOG = """a first run:
  hf-moe-lmc inspect org/a                                the experts of a model
  hf-moe-lmc compare org/a org/b                          what became of every expert
  hf-moe-lmc align org/a org/b -o alignment               permutations, a few MB
  hf-moe-lmc merge org/a org/b --alignment alignment -o merged
  hf-moe-lmc merge org/a org/b org/c --shares 2 1 1 -o mean
  hf-moe-lmc evaluate org/a org/b --alignment alignment --dataset book.txt -o report
  hf-moe-lmc push merged me/a-and-b --dry-run             the files that would be sent

exit codes: 0 done, 1 unexpected error (verify: not equal; compare --exit-code: another function), 2 usage, 3 bad input,
4 incompatible pair, 5 output or disk, 6 network or Hub, 130 interrupted"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, which takes `COMMON` before and after the command."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)  # what is short today may have two meanings tomorrow
        common = self.add_argument_group("common")
        for flag, meaning in COMMON.items():
            common.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=meaning)
        common.add_argument(
            "--threads",
            metavar="N",
            type=at_least(1),
            default=argparse.SUPPRESS,
            help="cores that work at a time (default: all that this process may use)",
        )
        common.add_argument(
            "--import",
            action="append",
            dest="imports",
            metavar="MODULE",
            default=argparse.SUPPRESS,
            help="Python module of your own models, which registers them; looked for in this folder, too",
        )

    def parse_known_args(  # type: ignore[override]  (of an overload)
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As of the base class; the defaults of a command are those that `--config` gives."""
        words = list(sys.argv[1:] if args is None else args)
        own = len(words) if self._subparsers is None else len([*takewhile(lambda word: word.startswith("-"), words)])
        args = [self._known_flag(word) if word.startswith("--") else word for word in words[:own]] + words[own:]
        if self._subparsers is None and (file := settings_file(args)):
            try:
                take_settings(self, self._actions, file)
            except ValueError as error:
                self.error(str(error))
        return super().parse_known_args(args, namespace)

    def _known_flag(self, word: str) -> str:
        """`--flag` or `--flag=value`, with `-` for `_` in the flag."""
        flag, equals, value = word.partition("=")
        if (flag := flag.replace("_", "-")) not in ("--", *self._option_string_actions):
            self.error(f"there is no {flag}{did_you_mean(flag, self._option_string_actions)}")
        return flag + equals + value

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As of the base class; the error names what may have been meant."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), map(str, action.choices or ()))
            raise

    @property
    def arguments(self) -> list[argparse.Action]:
        """All arguments, those of its commands included."""
        groups = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        commands = [command for group in groups for command in group.choices.values()]
        return [action for parser in (self, *commands) for action in parser._actions]

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit with 2."""
        self.exit(USAGE, f"error: {message}; see '{self.prog} --help'\n")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error line, with the nearest of the `known` words; empty if none is near."""
    near = get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def command_line() -> Parser:
    """The parser of the whole command line."""
    root = Parser(
        prog="hf-moe-lmc",
        description="Compare, align, merge and evaluate Mixture-of-Experts checkpoints of Hugging Face Transformers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action=_Version, nargs=0, help="show the version of this package and exit")
    root.set_defaults(root=root, threads=None, imports=(), **{flag.removeprefix("--"): False for flag in COMMON})
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return root


class _Version(argparse.Action):
    """Shows the version; what finds it takes longer to import than all the rest."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        parser.exit(message=f"{version('hf_moe_lmc')}\n")
