"""The commands that make a folder again."""

from hf_moe_lmc.alignment import Alignment

from .made_folder import ALIGN, APPLY, MadeFolder
from .markdown import Markdown, shell_command


def reproduction(made: MadeFolder, alignment: Alignment | None) -> list[Markdown]:
    """One command a line; of an alignment that is not known, or was not found by matching, none.

    Local parents are called by the last part of their path.
    """
    parents = {role: parent.argument for role, parent in made.parents.items()}
    if alignment is None or alignment.config is None or parents.keys() != {"reference", "other"}:
        return []
    order = ["--expert-order", alignment.config.expert_order]
    if made.command == ALIGN:
        return [
            shell_command(["hf-moe-lmc", "align", parents["reference"], parents["other"], *order, "-o", "alignment"])
        ]
    if made.command == APPLY:
        return [shell_command(["hf-moe-lmc", "apply", "alignment", parents["other"], "-o", "aligned"])]
    point = ["--t", f"{made.record['t']:g}"]
    return [
        shell_command(["hf-moe-lmc", "merge", parents["reference"], parents["other"], *point, *order, "-o", "merged"])
    ]
