"""`hf-moe-lmc completion`."""

import argparse
from typing import Any

from .arguments import add_command
from .results import CommandResult

SHELLS = ("bash", "zsh", "tcsh", "fish")
PATHS = ("FILE", "FOLDER", "MODEL", "REFERENCE", "OTHER", "BEFORE", "AFTER", "ALIGNMENT")


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `completion`."""
    completion = add_command(
        commands,
        "completion",
        run,
        "print a script that makes a shell complete commands and options",
        "Print a script for your shell. For bash: hf-moe-lmc completion bash > "
        "~/.local/share/bash-completion/completions/hf-moe-lmc; for zsh: into a folder of $fpath, as _hf-moe-lmc.",
    )
    completion.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def run(options: argparse.Namespace) -> CommandResult:
    """The script."""
    import shtab

    root = options.root
    for action in root.arguments:
        if action.metavar in PATHS:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  (how shtab wants it)
    script = shtab.complete(root, options.shell)
    return CommandResult(script, {"shell": options.shell, "script": script})
