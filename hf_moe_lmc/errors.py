"""Errors that a user can act on: what was found, what was expected, what to do. One line each."""

from collections.abc import Collection

LONGEST_LINE = 4000


class MoeLmcError(Exception):
    """Base of all errors raised on purpose; the command line ends with `exit_code`. The message is one line."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class BadInputError(MoeLmcError):
    """An input file, model or dataset cannot be used."""

    exit_code = 3


class UnsupportedArchitectureError(BadInputError):
    """A Mixture-of-Experts block whose structure or symmetries are not known; it is never guessed."""


class IncompatiblePairError(MoeLmcError):
    """Two models or two layers that cannot be compared."""

    exit_code = 4


class OutputError(MoeLmcError):
    """The output location cannot be used; nothing was written there."""

    exit_code = 5


class HubError(MoeLmcError):
    """The Hub or the network did not answer, or refused."""

    exit_code = 6


def check_choice(option: str, value: object, choices: Collection[str]) -> None:
    """Raise a BadInputError if the value of an option is none of its choices."""
    if value not in choices:
        raise BadInputError(f"{option}: there is no {value!r}; choose from {', '.join(choices)}")


def one_line(text: str) -> str:
    """`text`, which others may have written, as a line that can be printed.

    Every run of white space is one space, other characters that cannot be printed (such as those that steer a
    terminal) are escaped, and the middle of a very long line is left out.
    """
    words = " ".join(text.split())
    line = "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in words)
    if len(line) <= LONGEST_LINE:
        return line
    half = LONGEST_LINE // 2
    return f"{line[:half]} ... {line[-half:]}"
