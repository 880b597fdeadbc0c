"""The command line of an example."""

from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Mapping

from transformers import HfArgumentParser


class _Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """The description as it is written, and every default."""


class ExampleParser(HfArgumentParser):
    """Flags for the fields of dataclasses.

    Args:
        arguments: the dataclasses.
        description: the script's docstring.
        positional: what stands before the flags: name -> meaning; comes after the dataclasses, in a namespace.
    """

    def __init__(self, *arguments: type, description: str | None, positional: Mapping[str, str] | None = None) -> None:
        positional = positional or {}
        usage = " ".join(["%(prog)s", *positional, "[options]"])
        super().__init__(arguments, description=description, usage=usage, formatter_class=_Help)
        for name, meaning in positional.items():
            self.add_argument(name, help=meaning)
