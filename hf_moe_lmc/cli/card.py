"""`hf-moe-lmc card`."""

import argparse
import sys
from typing import Any


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `card`."""
    card = commands.add_parser(
        "card",
        help="write the model card of a merge, a rewritten checkpoint or an alignment",
        description="Write README.md in FOLDER: what it was made of and how, and what is known of it.",
    )
    card.add_argument("folder", metavar="FOLDER", help="what merge, apply or align wrote")
    card.add_argument("--alignment", metavar="FOLDER", help="that it was made with; is shown layer by layer")
    card.add_argument("--report", metavar="FOLDER", help="what evaluate found on the path between the parents")
    card.add_argument("--dataset", metavar="ID", help="that the report was measured on")
    card.add_argument("--license", metavar="ID", help="as the Hub calls it (default: what the parents' cards allow)")
    card.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the card."""
    from hf_moe_lmc.alignment import Alignment
    from hf_moe_lmc.hub import write_card

    alignment = Alignment.from_pretrained(options.alignment) if options.alignment else None
    write_card(options.folder, alignment, options.report, dataset=options.dataset, licence=options.license)
    sys.stdout.write(f"Written to {options.folder}/README.md\n")
    return 0
