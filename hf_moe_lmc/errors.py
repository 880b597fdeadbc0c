"""Errors that a user can act on: what was found, what was expected, what to do. One line each."""


class MoeLmcError(Exception):
    """Base of all errors raised on purpose; the command line ends with `exit_code`."""

    exit_code = 1


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
