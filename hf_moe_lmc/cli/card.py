"""`hf-moe-lmc card`."""

import argparse
from typing import Any

from .arguments import add_command, add_token
from .results import CommandResult


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `card`."""
    card = add_command(
        commands,
        "card",
        run,
        "write the model card of a merge, a rewritten checkpoint or an alignment",
        "Write README.md in FOLDER: its parents, the commands that made it, and the figures that are known.",
    )
    card.add_argument("folder", metavar="FOLDER", help="an output of merge, apply or align")
    card.add_argument(
        "--alignment", metavar="FOLDER", nargs="+", help="those that it was made with; shown layer by layer"
    )
    card.add_argument("--report", metavar="FOLDER", help="folder of `evaluate` on the path between the parents")
    card.add_argument("--dataset", metavar="ID", help="that the report was measured on")
    card.add_argument(
        "--license", "--licence", metavar="ID", help="as the Hub calls it (default: what the parents' cards allow)"
    )
    add_token(card)


def run(options: argparse.Namespace) -> CommandResult:
    """Write the card."""
    from hf_moe_lmc.alignment import Alignment
    from hf_moe_lmc.checkpoints import HubOptions
    from hf_moe_lmc.hub import write_card

    hub: HubOptions = {"token": options.token}
    alignments = [Alignment.from_pretrained(name, **hub) for name in options.alignment or ()] or None
    about = {"dataset": options.dataset, "license": options.license, "token": options.token}
    write_card(options.folder, alignments, options.report, **about)
    return CommandResult(f"Written to {options.folder}/README.md\n", {"output": f"{options.folder}/README.md"})
