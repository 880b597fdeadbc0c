"""`hf-moe-lmc completion`."""

import argparse
from typing import Any

from .answer import Answer
from .arguments import add_command

SHELLS = ("bash", "zsh", "tcsh", "fish")
PATHS = ("FILE", "FOLDER", "MODEL", "REFERENCE", "OTHER", "BEFORE", "AFTER", "ALIGNMENT")


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `completion`."""
    completion = add_command(
        commands,
        "completion",
        run,
        "print what makes a shell complete commands and options",
        "Print a script for your shell. For bash: hf-moe-lmc completion bash > "
        "~/.local/share/bash-completion/completions/hf-moe-lmc; for zsh: into a folder of $fpath, as _hf-moe-lmc.",
    )
    completion.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def run(options: argparse.Namespace) -> Answer:
    """The script."""
    import shtab

    from .parser import parser

    root = parser()
    for action in root.arguments:
        if action.metavar in PATHS:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  (how shtab wants it)
    script = shtab.complete(root, options.shell)
    return Answer(script, {"shell": options.shell, "script": script})
