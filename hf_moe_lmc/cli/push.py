"""`hf-moe-lmc push`."""

import argparse
from typing import Any

from .arguments import add_command, add_token
from .results import CommandResult


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """The options of `push`."""
    push = add_command(
        commands,
        "push",
        run,
        "publish a merge, a rewritten checkpoint or an alignment on the Hub",
        "Send FOLDER, an output of merge, apply or align, to REPOSITORY in one commit. The repository is "
        "made if it does not exist; files of others are never mixed with it, and none is deleted.",
    )
    push.add_argument("folder", metavar="FOLDER", help="an output of merge, apply or align")
    push.add_argument("repository", metavar="REPOSITORY", help="name or organisation/name on the Hub")
    push.add_argument("--private", action="store_true", help="only members may see the repository")
    push.add_argument("--create-pr", action="store_true", help="propose it as a pull request")
    push.add_argument(
        "--license",
        "--licence",
        metavar="ID",
        help="license, as the Hub calls it (default: what the parents' cards allow)",
    )
    add_token(push)
    push.add_argument("--dry-run", action="store_true", help="only say what would be sent")


def run(options: argparse.Namespace) -> CommandResult:
    """Check, send, and print the address."""
    from hf_moe_lmc.hub import plan_push, push_folder

    if options.dry_run:
        plan = plan_push(options.folder, options.repository, options.license, options.token)
        files = {file.name: file.nbytes for file in plan.files}
        return CommandResult(plan.text, {"repo_id": plan.repo_id, "license": plan.license, "files": files})
    address = push_folder(
        options.folder, options.repository, options.private, options.create_pr, options.license, options.token
    )
    return CommandResult(f"Pushed: {address}\n", {"address": address})
