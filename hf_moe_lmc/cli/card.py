"""`hf-moe-lmc card`."""

import argparse
from typing import Any

from .answer import Answer
from .arguments import add_command


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `card`."""
    card = add_command(
        commands,
        "card",
        run,
        "write the model card of a merge, a rewritten checkpoint or an alignment",
        "Write README.md in FOLDER: what it was made of and how, and what is known of it.",
    )
    card.add_argument("folder", metavar="FOLDER", help="what merge, apply or align wrote")
    card.add_argument("--alignment", metavar="FOLDER", help="that it was made with; is shown layer by layer")
    card.add_argument("--report", metavar="FOLDER", help="what evaluate found on the path between the parents")
    card.add_argument("--dataset", metavar="ID", help="that the report was measured on")
    card.add_argument("--license", metavar="ID", help="as the Hub calls it (default: what the parents' cards allow)")


def run(options: argparse.Namespace) -> Answer:
    """Write the card."""
    from hf_moe_lmc.alignment import Alignment
    from hf_moe_lmc.hub import write_card

    alignment = Alignment.from_pretrained(options.alignment) if options.alignment else None
    write_card(options.folder, alignment, options.report, dataset=options.dataset, license=options.license)
    return Answer(f"Written to {options.folder}/README.md\n", {"output": f"{options.folder}/README.md"})
