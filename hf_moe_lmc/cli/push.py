"""`hf-moe-lmc push`."""

import argparse
from typing import Any

from .answer import Answer
from .arguments import add_command


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `push`."""
    push = add_command(
        commands,
        "push",
        run,
        "publish a merge, a rewritten checkpoint or an alignment on the Hub",
        "Send FOLDER, which merge, apply or align wrote, to REPOSITORY in one commit. The repository is "
        "made if it does not exist; files of others are never mixed with it, and none is deleted.",
    )
    push.add_argument("folder", metavar="FOLDER", help="what merge, apply or align wrote")
    push.add_argument("repository", metavar="REPOSITORY", help="name or organisation/name on the Hub")
    push.add_argument("--private", action="store_true", help="only members may see the repository")
    push.add_argument("--create-pr", action="store_true", help="propose it as a pull request")
    push.add_argument(
        "--license", metavar="ID", help="license, as the Hub calls it (default: what the parents' cards allow)"
    )
    push.add_argument("--dry-run", action="store_true", help="only say what would be sent")


def run(options: argparse.Namespace) -> Answer:
    """Check, send, and print the address."""
    from hf_moe_lmc.hub import plan_push, push_folder

    if options.dry_run:
        plan = plan_push(options.folder, options.repository, options.license)
        files = {file.name: file.nbytes for file in plan.files}
        return Answer(plan.text, {"repository": plan.repo_id, "license": plan.license, "files": files})
    address = push_folder(
        options.folder, options.repository, options.private, options.create_pr, license=options.license
    )
    return Answer(f"Pushed: {address}\n", {"address": address})
