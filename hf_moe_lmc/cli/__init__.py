"""The command line, one file per command."""

from .run import main

__all__ = ["main"]
