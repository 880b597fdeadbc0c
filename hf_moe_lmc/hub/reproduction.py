"""The commands that make a folder again."""

from hf_moe_lmc.alignment import Alignment

from .made_folder import APPLY, MERGE, MERGE_MANY, MadeFolder
from .markdown import Markdown, shell_command
from .parent import Parent


def reproduction(made: MadeFolder, alignment: Alignment | None) -> list[Markdown]:
    """One command a line; none for an alignment that is not known, or was not found by matching two models.

    Local parents are called by the last part of their path.
    """
    if alignment is None or alignment.config is None or alignment.reference is None or alignment.other is None:
        return []
    pair = [Parent(record.name, record.commit).argument for record in (alignment.reference, alignment.other)]
    how = ["--expert-order", alignment.config.expert_order]
    how += ["--balance-scales"] if alignment.config.balance_scales else []
    models = [parent.argument for parent in made.parents.values()]
    if made.command == MERGE_MANY:
        shares = ["--weights", *(f"{weight!r}" for weight in made.record["weights"])]
        return [shell_command(["hf-moe-lmc", "merge", *models, *shares, *how, *_writing(made), "-o", "merged"])]
    commands = [["align", *pair, *how, "-o", "alignment"]]
    if made.command == APPLY:
        commands.append(["apply", "alignment", *models, *_writing(made), "-o", "aligned"])
    if made.command == MERGE:
        point = ["--t", f"{made.record['t']:g}", *_repairs(made)]
        commands.append(["merge", *models, "--alignment", "alignment", *point, *_writing(made), "-o", "merged"])
    return [shell_command(["hf-moe-lmc", *command]) for command in commands]


def _repairs(made: MadeFolder) -> list[str]:
    """The options of how a merge was repaired; a dataset that is not known by name is called DATA."""
    if made.calibration is None:
        return ["--keep-norms"] if made.repairs == ("norms",) else ["--repair", *made.repairs] if made.repairs else []
    flags = [part for name, value in made.calibration.items() for part in (f"--{name}", str(value))]
    return ["--repair", *(made.repairs or ("auto",)), *flags]


def _writing(made: MadeFolder) -> list[str]:
    """The options of how a checkpoint was written."""
    layout, dtype = made.record.get("layout", "kept"), made.record.get("dtype")
    return (["--layout", str(layout)] if layout != "kept" else []) + (["--dtype", str(dtype)] if dtype else [])
